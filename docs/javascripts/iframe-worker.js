// Search runs in a worker, which browsers refuse to a page opened from a file. There an unseen frame does its work.
if (location.protocol === "file:") {
  // The frame's script speaks through `postMessage` and `onmessage`, as in a worker, and loads others with `importScripts`.
  const inside = `
    const listeners = new Set()
    window.addEventListener = (type, listener) => type === "message" && listeners.add(listener)
    window.removeEventListener = (type, listener) => listeners.delete(listener)
    window.postMessage = (data) => outside.answer(data)
    window.receive = (data) => {
      const event = new MessageEvent("message", { data })
      if (typeof window.onmessage === "function") window.onmessage(event)
      listeners.forEach((listener) => listener(event))
    }
    window.importScripts = (...urls) => urls.reduce((before, url) => before.then(() => new Promise((done, failed) => {
      const script = document.createElement("script")
      Object.assign(script, { src: url, onload: done, onerror: failed })
      document.body.append(script)
    })), Promise.resolve())
  `
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = Object.assign(document.createElement("iframe"), { hidden: true })
      document.documentElement.append(this.frame)
      const { contentWindow: window, contentDocument: document_ } = this.frame
      window.outside = this
      window.eval(inside)
      this.ready = new Promise((onload, onerror) => {
        const script = Object.assign(document_.createElement("script"), { src: url, onload, onerror })
        document_.body.append(script)
      })
    }
    answer(data) {
      this.dispatchEvent(new MessageEvent("message", { data }))
    }
    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.receive(data))
    }
    terminate() {
      this.frame.remove()
    }
  }
}
