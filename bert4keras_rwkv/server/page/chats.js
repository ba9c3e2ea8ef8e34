/** All conversations of this browser: which are there, which one is shown, and as a file. */

import { Keep, preferences } from "./keep.js";
import { checked, DEFAULTS, newConversation, newId } from "./tree.js";

const FORM = "bert4keras_rwkv conversations";

/** Conversations by id. A new one is among them as soon as something is said in it. */
export class Chats {
  #chats = new Map();

  /** changed(id): another tab has changed that conversation. busy(chat): whether this tab is changing it. */
  static async open({ changed, busy, failed }) {
    const chats = new Chats();
    chats.failed = failed;
    chats.keep = await Keep.open(async (id) => {
      const known = chats.#chats.get(id);
      if (known && busy(known)) return;
      const now = await chats.keep.get(id);
      if (now) chats.#chats.set(id, now);
      else chats.#chats.delete(id);
      changed(id);
    });
    for (const chat of await chats.keep.all()) chats.#chats.set(chat.id, whole(chat));
    chats.show(preferences.session.get("open") ?? preferences.get("open"));
    return chats;
  }

  /** Show a conversation, or an empty one where there is none of that id. */
  show(id) {
    const settings = this.current?.settings ?? [...this.#sorted()][0]?.settings ?? DEFAULTS;
    this.current = this.#chats.get(id) ?? newConversation(settings);
    const known = this.#chats.has(id) ? id : "";
    preferences.session.set("open", known || "new");
    preferences.set("open", known);
  }

  has(id) {
    return this.#chats.has(id);
  }

  /** Whose title or messages hold the text, the newest first. */
  found(text) {
    const wanted = text.trim().toLowerCase();
    const holds = (words) => words.toLowerCase().includes(wanted);
    return this.#sorted().filter((chat) => holds(chat.title) || chat.nodes.some((node) => holds(node.content)));
  }

  /** Keep a conversation as it is now. */
  async save(chat) {
    this.#chats.set(chat.id, chat);
    if (chat === this.current) this.show(chat.id);
    await this.keep.save(chat).catch(() => this.failed());
  }

  /** Keep the settings of a conversation that has been begun. */
  async saveSettings(chat) {
    if (this.has(chat.id)) await this.save(chat);
  }

  async remove(chat) {
    this.#chats.delete(chat.id);
    if (chat === this.current) this.show(null);
    await this.keep.remove(chat.id).catch(() => this.failed());
  }

  /** All of them as the text of a file. */
  exported() {
    return JSON.stringify({ form: FORM, version: 1, conversations: this.#sorted() }, null, 1);
  }

  /** Take those of a file that are not here. Returns how many, or null if it is no such file. */
  async imported(text) {
    const given = parsed(text);
    if (given?.form !== FORM || !Array.isArray(given.conversations)) return null;
    const read = given.conversations.map(checked);
    if (read.includes(null)) return null;
    const fresh = read.filter((chat) => this.#chats.get(chat.id)?.updated !== chat.updated);
    for (const chat of fresh) await this.save(this.has(chat.id) ? { ...chat, id: newId() } : chat);
    return fresh.length;
  }

  #sorted() {
    return [...this.#chats.values()].sort((one, other) => other.updated - one.updated);
  }
}

/** What a tab left behind that was closed while a reply was being written. */
function whole(chat) {
  for (const { about } of chat.nodes) {
    if (about?.writing) {
      delete about.writing;
      about.trouble = { kind: "cut", message: "" };
    }
  }
  return chat;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
