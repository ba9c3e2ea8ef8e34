/** What comes up over the page: the question for a key, messages for a moment, and files. */

import { key } from "./api.js";
import { byId, h } from "./dom.js";
import { say } from "./strings.js";

const SHOWN = 8000; // milliseconds

/** Ask for the API key. wrong: what is said of the one that is there, "" for nothing. Returns whether one was given. */
export function askForKey(wrong) {
  const dialog = byId("key");
  const field = byId("key-field");
  const remember = byId("key-remember");
  if (dialog.open) return Promise.resolve(false);
  field.value = key.get();
  remember.checked = key.remembered();
  dialog.returnValue = "";
  dialog.showModal();
  byId("key-wrong").textContent = wrong;
  byId("key-wrong").hidden = !wrong;
  field.setAttribute("aria-invalid", String(Boolean(wrong)));
  field.select();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        if (dialog.returnValue === "save") key.set(field.value.trim(), remember.checked);
        resolve(dialog.returnValue === "save");
      },
      { once: true },
    );
  });
}

/** Let the buttons and Enter close the question for a key. */
export function wireKey() {
  const dialog = byId("key");
  byId("key-save").addEventListener("click", () => dialog.close("save"));
  byId("key-cancel").addEventListener("click", () => dialog.close());
  byId("key-field").addEventListener("keydown", (event) => {
    if (event.key === "Enter") dialog.close("save");
  });
}

/** Tell something for a moment. undo: what its button does, null for none. */
export function tell(text, undo = null) {
  const toast = h("div", { class: "toast" }, h("span", {}, text));
  if (undo) {
    const back = () => {
      toast.remove();
      undo();
    };
    toast.append(h("button", { type: "button", class: "plain", onclick: back }, say("undo")));
  }
  byId("toasts").replaceChildren(toast);
  setTimeout(() => toast.remove(), SHOWN);
}

/** Tell a screen reader something that others see. */
export function announce(text) {
  byId("announced").textContent = text;
}

/** Give the user a text as a file. */
export function download(name, text) {
  const address = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  h("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}
