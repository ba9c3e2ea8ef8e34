/** Where a message is written. What is typed is kept for each conversation until it is sent. */

import { byId, icon } from "./dom.js";
import { preferences } from "./keep.js";
import { say } from "./strings.js";
import { grow } from "./thread.js";

const touched = window.matchMedia("(pointer: coarse)"); // where a focus brings up a keyboard

/** send(text), stop(), editLast(): what the keys and the button do. */
export class Composer {
  #name = "new"; // of the draft

  constructor({ send, stop, editLast }) {
    Object.assign(this, { send, stop });
    this.field = byId("message");
    this.button = byId("send");
    this.writing = false;
    this.field.addEventListener("input", () => this.#typed());
    this.field.addEventListener("keydown", (event) => {
      if (event.isComposing || event.keyCode === 229) return; // the key chooses letters
      if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        if (!this.writing) this.#sent();
      }
      if (event.key === "ArrowUp" && !this.field.value && editLast()) event.preventDefault();
    });
    this.button.addEventListener("click", () => {
      if (this.writing) this.stop();
      else this.#sent();
    });
  }

  /** Show what was typed in a conversation. name: what its draft is called. writing: whether a reply comes. */
  show(name, writing) {
    if (name !== this.#name || this.field.value === "") {
      this.#name = name;
      this.field.value = preferences.get(`draft.${name}`) ?? "";
    }
    this.writing = writing;
    const label = say(writing ? "stop" : "send");
    this.button.setAttribute("aria-label", label);
    this.button.title = label;
    this.button.classList.toggle("stops", writing);
    this.button.replaceChildren(icon(writing ? "stop" : "send"));
    this.field.placeholder = say("write");
    this.#fit();
  }

  /** Let the next keys write here. Under a finger that is left to the user. */
  focus() {
    if (!touched.matches) this.field.focus();
  }

  #typed() {
    preferences.set(`draft.${this.#name}`, this.field.value);
    this.#fit();
  }

  #fit() {
    grow(this.field);
    this.button.disabled = !this.writing && !this.field.value.trim();
  }

  #sent() {
    const text = this.field.value.trim();
    if (!text) return;
    this.field.value = "";
    this.#typed();
    this.send(text);
  }
}
