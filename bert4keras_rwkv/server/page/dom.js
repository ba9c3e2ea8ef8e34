/** Elements of the page, made without any HTML text. */

import { PATHS } from "./icons.js";
import { say } from "./strings.js";

const SVG = "http://www.w3.org/2000/svg";

/** An element. attributes: null and false leave one out; `on...` are listeners. children: elements, texts, or null. */
export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(attribute.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(attribute, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** A drawing of `icons.js`, which a screen reader passes over. */
export function icon(name) {
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("viewBox", "0 0 24 24");
  drawing.setAttribute("class", "icon");
  drawing.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  drawing.append(path);
  return drawing;
}

/** A button that shows a drawing and is called by a text of the page. act: what `data-do` says. */
export function iconButton(drawing, text, act, more = {}) {
  const label = say(text);
  return h(
    "button",
    { type: "button", class: "quiet", "aria-label": label, title: label, "data-do": act, ...more },
    icon(drawing),
  );
}

/** What an element with this id is. */
export function byId(id) {
  return document.getElementById(id);
}

/** Whether a text now lies on the clipboard. Without https there is only the old way. */
export async function copied(text) {
  if (navigator.clipboard && window.isSecureContext) {
    return navigator.clipboard.writeText(text).then(
      () => true,
      () => false,
    );
  }
  const focused = document.activeElement;
  const field = h("textarea", { class: "unseen", readonly: true, "aria-hidden": "true" });
  field.value = text;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  focused?.focus();
  return done;
}
