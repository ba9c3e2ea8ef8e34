/** A reply as elements: Markdown through marked and DOMPurify, block by block, and only what is new is made again. */

import "./vendor/dompurify/purify.min.js";
import { marked } from "./vendor/marked/marked.esm.js";
import { h, iconButton } from "./dom.js";
import { say } from "./strings.js";

const { DOMPurify } = window;
const OPEN = "<think>";
const CLOSE = "</think>";
const TAGS = [
  "a",
  "blockquote",
  "br",
  "code",
  "del",
  "em",
  "h1",
  "h2",
  "h3",
  "h4",
  "h5",
  "h6",
  "hr",
  "img",
  "kbd",
  "li",
  "ol",
  "p",
  "pre",
  "s",
  "strong",
  "sub",
  "sup",
  "table",
  "tbody",
  "td",
  "th",
  "thead",
  "tr",
  "ul",
];
const HARMLESS = /^<\/?(br|kbd|sub|sup)\s*\/?>$/i; // of the HTML in a reply; the rest is shown as it is written
const HAN = /\p{Script=Han}/u;
const OWN_IMAGE = /^data:image\/(png|jpeg|gif|webp);base64,/i; // those of other places are not loaded
const CLEAN = {
  ALLOWED_TAGS: TAGS,
  ALLOWED_ATTR: ["align", "alt", "class", "href", "src", "start", "title"],
  ALLOWED_URI_REGEXP: /^(https?:|mailto:)/i,
  ADD_URI_SAFE_ATTR: ["align", "start"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

marked.use({
  gfm: true,
  renderer: {
    html({ text, block }) {
      if (HARMLESS.test(text.trim())) return text;
      return block ? `<pre><code class="language-html">${escaped(text)}</code></pre>` : escaped(text);
    },
    image({ href, text }) {
      if (OWN_IMAGE.test(href)) return `<img src="${escaped(href)}" alt="${escaped(text)}">`;
      return `<a href="${escaped(href)}">${escaped(say("imageLeft", { name: text || href }))}</a>`;
    },
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
});

const shown = new WeakMap(); // element -> its blocks: {raw, box}

/** Show a text in an element. What is there already, and the same, stays untouched. */
export function showMarkdown(element, text) {
  const blocks = marked.lexer(text).filter((token) => token.type !== "space" && token.type !== "def");
  const old = shown.get(element) ?? [];
  let same = 0;
  while (same < Math.min(old.length, blocks.length) && old[same].raw === blocks[same].raw) same += 1;
  for (const { box } of old.slice(same)) box.remove();
  const fresh = blocks.slice(same).map((token) => ({ raw: token.raw, box: boxOf(token) }));
  element.append(...fresh.map(({ box }) => box));
  shown.set(element, [...old.slice(0, same), ...fresh]);
}

/** A reply in two: {thought, thinking, text}. thinking: whether the thought has not ended. */
export function split(reply) {
  const text = reply.trimStart();
  if (text.startsWith(OPEN)) {
    const end = text.indexOf(CLOSE);
    if (end < 0) return { thought: text.slice(OPEN.length), thinking: true, text: "" };
    return { thought: text.slice(OPEN.length, end), thinking: false, text: text.slice(end + CLOSE.length) };
  }
  if (text && OPEN.startsWith(text)) return { thought: "", thinking: true, text: "" };
  const end = text.includes(OPEN) ? -1 : text.indexOf(CLOSE); // a template may have opened it
  if (end < 0) return { thought: "", thinking: false, text };
  return { thought: text.slice(0, end), thinking: false, text: text.slice(end + CLOSE.length) };
}

function boxOf(token) {
  const box = h("div", { class: "block" }, DOMPurify.sanitize(marked.parser([token]), CLEAN));
  for (const link of box.querySelectorAll("a[href]")) guardLink(link);
  for (const code of box.querySelectorAll("pre > code")) frameCode(code);
  for (const table of box.querySelectorAll("table")) {
    const frame = h("div", { class: "wide", tabindex: "0" });
    table.replaceWith(frame);
    frame.append(table);
  }
  for (const element of box.querySelectorAll("[class]:not(.wide)")) {
    if (!element.closest(".frame")) element.removeAttribute("class");
  }
  for (const stressed of box.querySelectorAll("em")) {
    if (HAN.test(stressed.textContent)) stressed.className = "han"; // which has no slanted letters
  }
  return box;
}

function guardLink(link) {
  link.rel = "noopener noreferrer nofollow";
  link.target = "_blank";
}

function frameCode(code) {
  const language = /language-(\S+)/.exec(code.className)?.[1] ?? "";
  const block = code.parentElement;
  const frame = h("div", { class: "frame" });
  block.replaceWith(frame);
  block.tabIndex = 0;
  block.setAttribute("aria-label", language || say("code"));
  block.setAttribute("role", "group");
  frame.append(h("div", { class: "bar" }, h("span", {}, language), iconButton("copy", "copy", "copyCode")), block);
}

function escaped(text) {
  return text.replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
}
