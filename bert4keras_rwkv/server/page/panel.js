/** The settings of a conversation: system prompt, state, and how words are chosen. */

import { offers } from "./api.js";
import { tell } from "./dialogs.js";
import { byId, h } from "./dom.js";
import { say } from "./strings.js";
import { DEFAULTS } from "./tree.js";

// [name, least, most, step] of a slider; a number beside it may be typed.
const SLIDERS = [
  ["temperature", 0, 2, 0.05],
  ["top_p", 0, 1, 0.05],
  ["top_k", 0, 200, 1],
  ["presence_penalty", -2, 2, 0.05],
  ["frequency_penalty", -2, 2, 0.05],
  ["penalty_decay", 0.9, 1, 0.001],
];
const NUMBERS = [
  ["max_tokens", 1, "asServer"],
  ["seed", 0, "chance"],
]; // [name, least, what an empty one says]

/** changed(chat): a setting of a conversation is new. */
export class Panel {
  constructor({ changed }) {
    this.changed = changed;
    this.root = byId("fields");
  }

  /** Show the settings of a conversation. */
  show(chat) {
    this.chat = chat;
    this.settings = chat.settings;
    this.root.replaceChildren(
      this.#text("system", "systemPrompt", "systemHint", 4),
      ...this.#choice("state", "state", "noState"),
      ...this.#choice("mode", "thoughts", "asUsual"),
      h("h3", {}, say("sampling")),
      ...SLIDERS.map((one) => this.#slider(...one)),
      ...NUMBERS.map((one) => this.#number(...one)),
      this.#text("stop", "stopTexts", "stopHint", 2),
      h("button", { type: "button", class: "plain", onclick: () => this.#reset(chat) }, say("reset")),
    );
  }

  #set(name, value) {
    this.settings[name] = value;
    this.changed(this.chat);
  }

  #reset(chat) {
    const before = { ...chat.settings };
    this.#replace(chat, DEFAULTS);
    this.root.querySelector("button:last-of-type").focus();
    tell(say("wasReset"), () => this.#replace(chat, before));
  }

  #replace(chat, settings) {
    Object.assign(chat.settings, settings);
    this.changed(chat);
    if (chat === this.chat) this.show(chat);
  }

  #text(name, label, hint, rows) {
    const field = h("textarea", {
      id: `set-${name}`,
      rows,
      "aria-describedby": `hint-${name}`,
      oninput: () => this.#set(name, field.value),
    });
    field.value = this.settings[name];
    return labelled(name, label, hint, field);
  }

  /** A setting that is one of several names, where the server has any. One that it does not have is not sent. */
  #choice(name, label, usual) {
    const wanted = this.settings[name];
    const names = offers[name] ?? [];
    if (!names.length && !wanted) return [];
    const gone = offers.lack(this.settings, name);
    const other = wanted && !names.includes(wanted) ? [wanted] : [];
    const hint = h("small", { id: `hint-${name}`, class: "warns", hidden: !gone }, say("notSent", { name: wanted }));
    const chosen = () => {
      this.#set(name, field.value);
      hint.hidden = !offers.lack(this.settings, name);
    };
    const field = h(
      "select",
      { id: `set-${name}`, "aria-describedby": `hint-${name}`, onchange: chosen },
      h("option", { value: "" }, say(usual)),
      ...other.map((one) => h("option", { value: one }, gone ? say("gone", { name: one }) : one)),
      ...names.map((one) => h("option", { value: one }, one)),
    );
    field.value = wanted;
    return [h("div", { class: "field" }, h("label", { for: `set-${name}` }, say(label)), field, hint)];
  }

  #slider(name, least, most, step) {
    const limits = { min: least, max: most, step };
    const typed = h("input", {
      ...limits,
      type: "number",
      step: "any",
      id: `set-${name}`,
      "aria-describedby": `hint-${name}`,
    });
    const slid = h("input", { ...limits, type: "range", "aria-label": say(name), "aria-describedby": `hint-${name}` });
    const show = (value) => {
      slid.value = value;
      const part = (Number(slid.value) - least) / (most - least);
      slid.style.setProperty("--part", `${100 * part}%`);
    };
    typed.value = this.settings[name];
    show(this.settings[name]);
    slid.addEventListener("input", () => {
      typed.value = slid.value;
      show(slid.value);
      this.#set(name, Number(slid.value));
    });
    typed.addEventListener("change", () => {
      const value = typed.value === "" ? DEFAULTS[name] : Number(typed.value);
      const whole = name === "top_k" ? Math.round(value) : value;
      const low = name === "penalty_decay" ? 0 : least;
      typed.value = Math.max(low, name === "top_k" ? whole : Math.min(most, whole));
      show(typed.value);
      this.#set(name, Number(typed.value));
    });
    const head = h("div", { class: "head" }, h("label", { for: `set-${name}` }, say(name)), typed);
    return h("div", { class: "field" }, head, slid, h("small", { id: `hint-${name}` }, say(`${name}Hint`)));
  }

  #number(name, least, empty) {
    const field = h("input", {
      type: "number",
      id: `set-${name}`,
      min: least,
      step: 1,
      placeholder: say(empty),
      "aria-describedby": `hint-${name}`,
    });
    field.value = this.settings[name] ?? "";
    field.addEventListener("change", () => {
      const value = field.value === "" ? null : Math.max(least, Math.round(Number(field.value)));
      field.value = value ?? "";
      this.#set(name, value);
    });
    return labelled(name, name, `${name}Hint`, field);
  }
}

function labelled(name, label, hint, field) {
  const text = h("label", { for: `set-${name}` }, say(label));
  return h("div", { class: "field" }, text, field, h("small", { id: `hint-${name}` }, say(hint)));
}
