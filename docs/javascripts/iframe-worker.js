// The site's search runs in a Web Worker, and browsers start no worker from a page that was opened from disk. This class
// stands in for Worker there: it runs the worker's script in a hidden frame. Material looks for a script of this file's
// name and, if there is none, loads one from another server.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.appendChild(frame)
      this.inside = frame.contentWindow
      this.inside.postMessage = data => setTimeout(() => this.dispatchEvent(new MessageEvent("message", { data })))
      this.inside.importScripts = (...urls) =>
        Promise.all(urls.map(one => load(frame.contentDocument, one)))
      this.ready = load(frame.contentDocument, url)
    }

    postMessage(data) {
      this.ready.then(() => this.inside.dispatchEvent(new MessageEvent("message", { data })))
    }
  }
}

function load(page, url) {
  return new Promise((resolve, reject) => {
    const script = page.createElement("script")
    Object.assign(script, { src: url, onload: resolve, onerror: reject })
    page.body.appendChild(script)
  })
}
