/** The side bar: conversations by day, searched, renamed and deleted. */

import { byId, h, iconButton } from "./dom.js";
import { say } from "./strings.js";

const DAY = 86400000; // milliseconds

/** chats: a `Chats`. writing(chat): whether a reply comes. act(what, chat, text): a button of it was pressed. */
export class List {
  constructor({ chats, writing, act }) {
    Object.assign(this, { chats, writing, act });
    this.root = byId("chats");
    this.search = byId("search");
    this.search.addEventListener("input", () => this.show());
    this.search.addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown") this.#move(null, 1, event);
      if (event.key === "Enter") this.root.querySelector(".open")?.click();
    });
    this.root.addEventListener("keydown", (event) => this.#keyed(event));
  }

  /** Show those that the search finds. */
  show() {
    if (this.root.querySelector("input")) return; // a name is being typed
    const focused = document.activeElement?.closest?.("#chats li")?.dataset.id;
    const found = this.chats.found(this.search.value);
    const groups = grouped(found);
    const parts = [...groups].flatMap(([age, chats]) => [
      h("h2", {}, say(age)),
      h("ul", {}, ...chats.map((chat) => this.#item(chat))),
    ]);
    const nothing = say(this.search.value ? "nothingFound" : "noChats");
    this.root.replaceChildren(...(found.length ? parts : [h("p", { class: "nothing" }, nothing)]));
    if (focused) this.root.querySelector(`li[data-id="${focused}"] .open`)?.focus();
  }

  #item(chat) {
    const current = chat === this.chats.current;
    const title = chat.title || say("untitled");
    const dot = this.writing(chat) ? h("span", { class: "dot", role: "img", "aria-label": say("writingNow") }) : null;
    const open = h(
      "button",
      {
        type: "button",
        class: "open",
        title,
        "aria-current": current && "page",
        onclick: () => this.act("open", chat),
      },
      h("span", { class: "title", dir: "auto" }, title),
      dot,
    );
    const named = (text) => ({ "aria-label": `${say(text)}: ${title}` });
    const item = h(
      "li",
      { "data-id": chat.id },
      open,
      iconButton("pen", "rename", "rename", { ...named("rename"), onclick: () => this.#rename(item, chat) }),
      iconButton("bin", "remove", "remove", { ...named("remove"), onclick: () => this.act("remove", chat) }),
    );
    return item;
  }

  #rename(item, chat) {
    const field = h("input", { type: "text", "aria-label": say("name"), maxlength: 200 });
    field.value = chat.title;
    const end = (saved) => {
      if (!field.isConnected) return;
      const title = field.value.trim();
      item.replaceChildren();
      if (saved && title) this.act("renamed", chat, title);
      this.show();
      this.root.querySelector(`li[data-id="${chat.id}"] .open`)?.focus();
    };
    field.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter" && !event.isComposing) end(true);
      if (event.key === "Escape") end(false);
    });
    field.addEventListener("blur", () => end(true));
    item.replaceChildren(field);
    field.select();
  }

  #keyed(event) {
    const item = event.target.closest("li");
    if (!item || !event.target.matches("button")) return;
    if (event.key === "ArrowDown") this.#move(item, 1, event);
    if (event.key === "ArrowUp") this.#move(item, -1, event);
    if (event.key === "F2") item.querySelector('[data-do="rename"]').click();
    if (event.key === "Delete") item.querySelector('[data-do="remove"]').click();
  }

  #move(item, step, event) {
    const items = [...this.root.querySelectorAll("li")];
    const next = items[items.indexOf(item) + step];
    event.preventDefault();
    (next?.querySelector(".open") ?? (step < 0 ? this.search : null))?.focus();
  }
}

function ageOf(chat) {
  const today = new Date().setHours(0, 0, 0, 0);
  if (chat.updated >= today) return "today";
  if (chat.updated >= today - DAY) return "yesterday";
  return chat.updated >= today - 7 * DAY ? "week" : "older";
}

function grouped(chats) {
  const groups = new Map();
  for (const chat of chats) groups.set(ageOf(chat), [...(groups.get(ageOf(chat)) ?? []), chat]);
  return groups;
}
