/** Server-sent events out of a stream of bytes, wherever it is cut: in a letter, a line, or between CR and LF. */

/** The data of each event. stream: a ReadableStream of bytes, which is cancelled when nobody reads on. */
export async function* events(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let waiting = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      waiting += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const held = !done && waiting.endsWith("\r") ? 1 : 0; // its LF may be on the way
      const lines = waiting.slice(0, waiting.length - held).split(/\r\n|\n|\r/);
      waiting = lines.pop() + waiting.slice(waiting.length - held);
      for (const line of lines) {
        if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        } else if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        }
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {}); // a stream that broke has nothing to cancel
  }
}
