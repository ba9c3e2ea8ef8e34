/** The messages of one conversation on the page. What has not changed is not made again. */

import { wantsKey } from "./api.js";
import { byId, h, icon, iconButton } from "./dom.js";
import { preferences } from "./keep.js";
import { showMarkdown, split } from "./markdown.js";
import { number, say, tag } from "./strings.js";
import { nodeOf, path, versions } from "./tree.js";

const NEAR = 90; // pixels from the end that count as being there
const SUGGESTIONS = ["try1", "try2", "try3"];

/** act(what, node, text): a button of a message was pressed; text is that of an edited message. */
export class Thread {
  #articles = new Map(); // node id -> its article
  #chat = null;

  constructor({ act, modelName }) {
    this.act = act;
    this.modelName = modelName;
    this.root = byId("messages");
    this.scroll = byId("scroll");
    this.root.addEventListener("click", (event) => this.#clicked(event));
    this.scroll.addEventListener("scroll", () => this.#followed(), { passive: true });
    byId("newest").addEventListener("click", () => this.toEnd());
    new ResizeObserver(() => this.#resized()).observe(this.scroll);
    this.follows = true;
  }

  /** Show a conversation, from its end if it is another one than before. afresh: the words of the page have changed. */
  show(chat, afresh = false) {
    const other = chat !== this.#chat;
    this.#chat = chat;
    if (other || afresh) this.#articles.clear();
    const nodes = path(chat);
    const articles = nodes.map((node) => this.#article(node));
    articles.forEach((article, at) => {
      if (this.root.children[at] !== article) this.root.insertBefore(article, this.root.children[at] ?? null);
    });
    while (this.root.children.length > articles.length) this.root.lastElementChild.remove();
    for (const node of nodes) this.update(node);
    byId("hello").hidden = nodes.length > 0;
    if (!nodes.length) this.#greet();
    if (other) this.toEnd();
  }

  /** Show a message as it is now, if it is there. */
  update(node) {
    const article = this.#articles.get(node.id);
    if (!article?.isConnected) return;
    if (!article.querySelector(".editor")) {
      if (node.role === "assistant") fillReply(article, node);
      else article.querySelector(".text").textContent = node.content;
    }
    this.#fillFoot(article, node);
    if (this.follows) this.toEnd();
  }

  /** Let a message be written anew. */
  edit(node) {
    const article = this.#articles.get(node.id);
    if (article.querySelector(".editor")) return;
    const field = h("textarea", { "aria-label": say("editing"), rows: 1 });
    field.value = preferences.get(`edit.${node.id}`) ?? node.content;
    const save = say(node.role === "user" ? "sendEdited" : "save");
    const editor = h(
      "div",
      { class: "editor" },
      field,
      h(
        "div",
        { class: "row" },
        h("button", { type: "button", class: "plain", "data-do": "cancelEdit" }, say("cancel")),
        h("button", { type: "button", class: "strong", "data-do": "saveEdit" }, save),
      ),
    );
    const fit = () => {
      grow(field);
      editor.scrollIntoView({ block: "nearest" });
    };
    field.addEventListener("input", () => {
      preferences.set(`edit.${node.id}`, field.value);
      fit();
    });
    field.addEventListener("keydown", (event) => {
      const sends =
        event.key === "Enter" &&
        !event.isComposing &&
        (event.ctrlKey || event.metaKey || (node.role === "user" && !event.shiftKey));
      if (sends || event.key === "Escape") {
        event.preventDefault();
        event.stopPropagation();
        this.#endEdit(node, sends ? field.value : null);
      }
    });
    article.classList.add("edited");
    article.append(editor);
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
    fit();
  }

  /** Put the focus on a button of a message, which may be a new one in its place. */
  focus(node, what) {
    const article = this.#articles.get(node.id);
    const buttons = [what, "previous", "next", "copy"].map((name) => article?.querySelector(`[data-do="${name}"]`));
    buttons.find((button) => button && !button.disabled)?.focus();
  }

  /** Go to the newest message, and stay with what is written. */
  toEnd() {
    this.follows = true;
    this.scroll.scrollTop = this.scroll.scrollHeight;
    byId("newest").hidden = true;
  }

  /** A keyboard that comes up hides neither the end nor what is edited. */
  #resized() {
    const edited = this.root.querySelector(".editor:focus-within");
    if (edited) edited.scrollIntoView({ block: "nearest" });
    else if (this.follows) this.toEnd();
  }

  #followed() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroll;
    this.follows = scrollHeight - scrollTop - clientHeight < NEAR;
    byId("newest").hidden = this.follows;
  }

  #article(node) {
    if (!this.#articles.has(node.id)) {
      const parts =
        node.role === "assistant"
          ? [thoughtBox(), h("div", { class: "prose" }), h("div", { class: "note", hidden: true })]
          : [h("div", { class: "text", dir: "auto" })];
      const label = say(node.role === "assistant" ? "reply" : "you");
      const article = h(
        "article",
        { class: `message ${node.role}`, tabindex: -1, "data-id": node.id, "aria-label": label },
        ...parts,
        h("footer", {}, h("div", { class: "buttons" }), h("span", { class: "figures" })),
      );
      this.#articles.set(node.id, article);
    }
    return this.#articles.get(node.id);
  }

  #fillFoot(article, node) {
    const all = versions(this.#chat, node);
    const at = all.indexOf(node);
    const writing = Boolean(node.about?.writing);
    const empty = !node.content;
    const state = JSON.stringify([at, all.length, writing, empty, tag()]);
    if (article.dataset.state !== state) {
      article.dataset.state = state;
      const leaf = all.length > 1 && !writing ? leaves(at, all.length) : [];
      const again = node.role === "assistant" ? [iconButton("again", "regenerate", "regenerate")] : [];
      const rest = [
        iconButton("copy", "copy", "copy"),
        ...again,
        iconButton("pen", "edit", "edit"),
        iconButton("fork", "fork", "fork"),
      ];
      article.querySelector(".buttons").replaceChildren(...leaf, ...(writing || empty ? [] : rest));
    }
    if (node.role === "assistant") fillFigures(article.querySelector(".figures"), node.about ?? {});
  }

  #greet() {
    const name = this.modelName();
    byId("greeting").textContent = say("hello");
    byId("greeting-more").textContent = name ? say("helloMore", { model: name }) : say("helloAlone");
    byId("suggestions").replaceChildren(
      ...SUGGESTIONS.map((text) =>
        h(
          "button",
          { type: "button", class: "plain", onclick: () => this.act("suggestion", null, say(text)) },
          say(text),
        ),
      ),
    );
  }

  async #clicked(event) {
    const button = event.target.closest("[data-do]");
    if (!button) return;
    const article = button.closest("article");
    const node = nodeOf(this.#chat, article.dataset.id);
    const what = button.dataset.do;
    if (what === "edit") this.edit(node);
    else if (what === "cancelEdit") this.#endEdit(node, null);
    else if (what === "saveEdit") this.#endEdit(node, article.querySelector(".editor textarea").value);
    else if (what === "copyCode")
      this.act("copy", node, button.closest(".frame").querySelector("code").textContent, button);
    else if (what === "copy") this.act("copy", node, split(node.content).text.trim() || node.content, button);
    else this.act(what, node);
  }

  #endEdit(node, text) {
    const article = this.#articles.get(node.id);
    preferences.set(`edit.${node.id}`, "");
    article.querySelector(".editor").remove();
    article.classList.remove("edited");
    if (text?.trim() && text !== node.content) this.act("edited", node, text);
    else this.focus(node, "edit");
  }
}

/** Let a field be as high as its text, up to what the style sheet allows. */
export function grow(field) {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

function thoughtBox() {
  return h("details", { class: "thought", hidden: true }, h("summary", {}), h("div", { class: "prose" }));
}

function fillReply(article, node) {
  const { thought, thinking, text } = split(node.content);
  const about = node.about ?? {};
  const box = article.querySelector(".thought");
  const [, prose, note] = article.children;
  box.hidden = !thought.trim() && !thinking;
  box.classList.toggle("live", thinking && Boolean(about.writing));
  box.querySelector("summary").textContent = say(thinking && about.writing ? "thinking" : "thought");
  showMarkdown(box.querySelector(".prose"), thought);
  showMarkdown(prose, text);
  prose.classList.toggle("live", Boolean(about.writing) && !thinking);
  article.setAttribute("aria-busy", String(Boolean(about.writing)));
  fillNote(note, node, about);
}

function fillNote(note, node, about) {
  const { text, buttons, trouble } = noteOf(node, about);
  const state = JSON.stringify([text, buttons]);
  note.hidden = !text;
  if (note.dataset.state === state) return;
  note.dataset.state = state;
  note.classList.toggle("trouble", trouble);
  note.setAttribute("role", trouble ? "alert" : "note");
  note.replaceChildren(
    h("span", {}, text),
    ...buttons.map(([what, label]) => h("button", { type: "button", class: "plain", "data-do": what }, say(label))),
  );
}

/** What is said under a reply, and which buttons stand there: [what they do, their text]. */
function noteOf(node, { writing, trouble, reason }) {
  const on = node.content ? ["goOn", "goOn"] : ["again", "again"];
  if (trouble?.kind === "waiting") {
    const left = Math.max(1, Math.ceil((trouble.until - Date.now()) / 1000));
    return { text: say("busy", { count: number(left) }), buttons: [], trouble: true };
  }
  if (writing) return { text: node.content ? "" : say("waiting"), buttons: [], trouble: false };
  if (trouble) {
    const text = say(trouble.kind === "busy" ? "busyLong" : trouble.kind, { message: trouble.message });
    return { text, buttons: [wantsKey(trouble) ? ["key", "enterKey"] : on], trouble: true };
  }
  if (["stopped", "length"].includes(reason)) return { text: say(reason), buttons: [on], trouble: false };
  return { text: node.content ? "" : say("empty"), buttons: node.content ? [] : [on], trouble: false };
}

function leaves(at, count) {
  const now = h(
    "span",
    { class: "which" },
    h("span", { "aria-hidden": "true" }, `${at + 1}/${count}`),
    h("span", { class: "unseen" }, say("version", { now: at + 1, all: count })),
  );
  return [
    iconButton("left", "previous", "previous", { disabled: at === 0 }),
    now,
    iconButton("right", "next", "next", { disabled: at === count - 1 }),
  ];
}

function fillFigures(place, about) {
  const told = [];
  if (about.written) told.push(say(about.rough ? "roughly" : "tokens", { count: number(about.written) }));
  if (about.speed) told.push(say("speed", { count: number(about.speed, about.speed < 10 ? 1 : 0) }));
  if (about.first !== undefined) told.push(say("first", { count: number(about.first, 2) }));
  place.textContent = told.join(" · ");
  const more = [
    about.model,
    about.read && say("readTokens", { count: number(about.read) }),
    about.cached && say("cached", { count: number(about.cached), all: number(about.read) }),
    about.seed !== undefined && say("seedWas", { seed: about.seed }),
  ];
  place.title = more.filter(Boolean).join(" · ");
}

/** Show for a moment on a button that something is done. */
export function tick(button, drawing) {
  button.replaceChildren(icon("check"));
  setTimeout(() => button.replaceChildren(icon(drawing)), 1200);
}
