/** Replies while they are written: one a conversation, which goes on while another conversation is shown. */

import { chunks, offers } from "./api.js";
import { messages } from "./tree.js";

const TRIES = 6; // of a server that is busy, before the user is asked
const SAVE_EACH = 1000; // milliseconds
const LONG_ENOUGH = 100; // milliseconds, to tell a speed
const MOST_STOPS = 4;

/** changed(chat, node): something of a reply is new. save(chat): keep it. */
export class Replies {
  #running = new Map();

  constructor({ changed, save }) {
    this.changed = changed;
    this.save = save;
  }

  /** Whether a reply of this conversation is being written. */
  has(chat) {
    return this.#running.has(chat.id);
  }

  /** Write the reply `node`, or with `goOn` what comes behind the text it has. It never throws what went wrong. */
  async write(chat, node, goOn = false) {
    const control = new AbortController();
    this.#running.set(chat.id, control);
    const seed = chat.settings.seed ?? crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;
    node.content = goOn ? node.content : "";
    node.about = { writing: true, seed };
    this.changed(chat, node);
    this.save(chat);
    try {
      await this.#tried(chat, node, requestOf(chat, node, seed, goOn), control.signal);
    } catch (error) {
      if (error.name === "AbortError") node.about.reason = "stopped";
      else if (error.kind) node.about.trouble = { kind: error.kind, message: error.message };
      else throw error;
    } finally {
      this.#running.delete(chat.id);
      delete node.about.writing;
      chat.updated = Date.now();
      this.changed(chat, node);
      this.save(chat);
    }
  }

  /** Write no more of it. What came stays. */
  stop(chat) {
    this.#running.get(chat.id)?.abort();
  }

  async #tried(chat, node, request, signal) {
    for (let tries = 1; ; tries += 1) {
      try {
        return await this.#read(chat, node, request, signal);
      } catch (error) {
        if (error.kind !== "busy" || tries === TRIES) throw error;
        const until = Date.now() + 1000 * Math.min(error.wait * 2 ** (tries - 1), 30);
        node.about.trouble = { kind: "waiting", until };
        while (Date.now() < until) {
          this.changed(chat, node);
          await pause(Math.min(1000, until - Date.now()), signal);
        }
        delete node.about.trouble;
      }
    }
  }

  async #read(chat, node, request, signal) {
    const { about } = node;
    const asked = performance.now();
    let first = null;
    let pieces = 0;
    let saved = asked;
    for await (const chunk of chunks(request, signal)) {
      const now = performance.now();
      const choice = chunk.choices?.[0];
      if (chunk.model) about.model = String(chunk.model);
      if (choice?.delta?.content) {
        first ??= now;
        pieces += 1;
        node.content += choice.delta.content;
        count(about, pieces, true, asked, first, now);
      }
      if (choice?.finish_reason) about.reason = choice.finish_reason;
      if (chunk.usage) {
        about.read = chunk.usage.prompt_tokens;
        about.cached = chunk.usage.prompt_tokens_details?.cached_tokens ?? 0;
        if (first !== null) count(about, chunk.usage.completion_tokens, false, asked, first, now);
      }
      if (now - saved > SAVE_EACH) {
        saved = now;
        this.save(chat);
      }
      this.changed(chat, node);
    }
  }
}

function count(about, written, rough, asked, first, now) {
  Object.assign(about, { written, rough, first: (first - asked) / 1000 });
  if (written > 1 && now - first > LONG_ENOUGH) about.speed = (written - 1) / ((now - first) / 1000);
}

/** The body of a request. Penalties that are never forgotten are what a server does by itself. */
function requestOf(chat, node, seed, goOn) {
  const { settings } = chat;
  const stop = settings.stop
    .split("\n")
    .filter(Boolean)
    .slice(0, MOST_STOPS)
    .map((text) => text.replaceAll("\\n", "\n"));
  return {
    messages: messages(chat, node, goOn),
    stream: true,
    stream_options: { include_usage: true },
    temperature: settings.temperature,
    top_p: settings.top_p,
    presence_penalty: settings.presence_penalty,
    frequency_penalty: settings.frequency_penalty,
    seed,
    ...(settings.top_k && { top_k: settings.top_k }),
    ...(settings.penalty_decay !== 1 && { penalty_decay: settings.penalty_decay }),
    ...(settings.max_tokens && { max_tokens: settings.max_tokens }),
    ...(stop.length && { stop }),
    ...(settings.state && !offers.lack(settings, "state") && { state: settings.state }),
    ...(settings.mode && !offers.lack(settings, "mode") && { mode: settings.mode }),
    ...(goOn && { continue_final_message: true, add_generation_prompt: false }),
  };
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener(
      "abort",
      () => {
        clearTimeout(timer);
        reject(signal.reason);
      },
      { once: true },
    );
  });
}
