/** What the browser keeps: conversations in IndexedDB, small texts. Without either it lasts as long as the tab. */

const CHATS = "chats";

class Texts {
  constructor(place) {
    this.kept = new Map();
    try {
      this.place = window[place];
    } catch {
      this.place = null; // the browser allows no storage
    }
  }

  get(name) {
    return this.kept.get(name) ?? this.place?.getItem(`chat.${name}`) ?? null;
  }

  set(name, value) {
    this.kept.set(name, value);
    try {
      if (value) this.place?.setItem(`chat.${name}`, value);
      else this.place?.removeItem(`chat.${name}`);
    } catch {
      // Full: it is kept as long as the page.
    }
  }
}

/** Small texts by name: `get` gives null for what is not there, `set(name, "")` removes. `session`: of the tab alone. */
export const preferences = new Texts("localStorage");
preferences.session = new Texts("sessionStorage");

/** Conversations by id. `lasting` is false where they are lost with the tab. */
export class Keep {
  /** heard(id): another tab has changed that conversation. */
  static async open(heard) {
    const keep = new Keep();
    keep.base = await database().catch(() => null);
    keep.lasting = keep.base !== null;
    if ("BroadcastChannel" in window) {
      keep.channel = new BroadcastChannel(CHATS);
      keep.channel.onmessage = (event) => heard(event.data);
    }
    return keep;
  }

  async all() {
    return this.lasting ? this.#does("readonly", (store) => store.getAll()) : [];
  }

  async get(id) {
    return this.lasting ? this.#does("readonly", (store) => store.get(id)) : undefined;
  }

  async save(chat) {
    if (this.lasting) await this.#does("readwrite", (store) => store.put(chat));
    this.channel?.postMessage(chat.id);
  }

  async remove(id) {
    if (this.lasting) await this.#does("readwrite", (store) => store.delete(id));
    this.channel?.postMessage(id);
  }

  #does(mode, action) {
    return new Promise((resolve, reject) => {
      const change = this.base.transaction(CHATS, mode);
      const request = action(change.objectStore(CHATS));
      change.oncomplete = () => resolve(request.result);
      change.onabort = () => reject(change.error ?? request.error);
    });
  }
}

function database() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open("bert4keras_rwkv", 1);
    request.onupgradeneeded = () => request.result.createObjectStore(CHATS, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
