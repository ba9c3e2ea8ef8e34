/**
 * A conversation as a tree: every message may have versions beside it, and each parent knows the one that is chosen.
 *
 * conversation: {id, title, created, updated, settings, child, nodes}, times in milliseconds.
 * node: {id, parent, role, content, created, child, about}. parent and child are ids or null; about tells how a reply
 * came to be, null for what the user wrote.
 */

export const DEFAULTS = Object.freeze({
  system: "",
  state: "",
  mode: "",
  temperature: 1,
  top_p: 0.3,
  top_k: 0,
  presence_penalty: 0.5,
  frequency_penalty: 0.5,
  penalty_decay: 0.996,
  max_tokens: null,
  seed: null,
  stop: "",
});
const TITLE = 60; // letters at most
const MOST_NODES = 100000; // of an imported conversation

/** A name that nothing else has. `crypto.randomUUID` is there only under https. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** An empty conversation that samples as these settings say. It has no system prompt, state, or mode yet. */
export function newConversation(sampling = DEFAULTS) {
  const now = Date.now();
  const { system, state, mode } = DEFAULTS;
  return {
    id: newId(),
    title: "",
    created: now,
    updated: now,
    settings: { ...sampling, system, state, mode },
    child: null,
    nodes: [],
  };
}

/** The node of an id, or undefined. */
export function nodeOf(chat, id) {
  return chat.nodes.find((node) => node.id === id);
}

/** The chosen messages, from the first to the last. */
export function path(chat) {
  const known = new Map(chat.nodes.map((node) => [node.id, node]));
  const found = [];
  for (let node = known.get(chat.child); node; node = known.get(node.child)) found.push(node);
  return found;
}

/** The messages that lead to a node, itself included. */
export function pathTo(chat, node) {
  const known = new Map(chat.nodes.map((one) => [one.id, one]));
  const found = [];
  for (let one = node; one; one = known.get(one.parent)) found.unshift(one);
  return found;
}

/** All versions of a message, the oldest first. */
export function versions(chat, node) {
  return chat.nodes.filter((one) => one.parent === node.parent);
}

/** Let this version be the one that is shown. */
export function choose(chat, node) {
  (nodeOf(chat, node.parent) ?? chat).child = node.id;
}

/** A new message behind `parent`, a node or null, which becomes the chosen one. */
export function add(chat, parent, role, content, about = null) {
  const node = { id: newId(), parent: parent?.id ?? null, role, content, created: Date.now(), child: null, about };
  chat.nodes.push(node);
  choose(chat, node);
  chat.updated = node.created;
  chat.title ||= titleOf(content);
  return node;
}

/** A new conversation that begins with the messages up to `node`. */
export function fork(chat, node, title) {
  const copy = { ...newConversation(), settings: { ...chat.settings }, title };
  let parent = null;
  for (const { role, content, about } of pathTo(chat, node)) {
    parent = add(copy, parent, role, content, structuredClone(about));
  }
  return copy;
}

/** What a request says before the reply `node`; with `itself` what the reply has so far comes last. */
export function messages(chat, node, itself = false) {
  const before = pathTo(chat, node).filter((one) => one.content && (one !== node || itself));
  const system = chat.settings.system.trim();
  const first = system ? [{ role: "system", content: system }] : [];
  return [...first, ...before.map(({ role, content }) => ({ role, content }))];
}

/** The first words of a message. */
export function titleOf(content) {
  const line = content.trim().split("\n", 1)[0].replace(/\s+/g, " ");
  const letters = Array.from(line);
  return letters.length > TITLE
    ? `${letters
        .slice(0, TITLE - 1)
        .join("")
        .trimEnd()}…`
    : line;
}

/** A conversation out of a file that nobody vouches for, or null: texts are texts, and every parent stands before. */
export function checked(given) {
  if (!isObject(given) || !Array.isArray(given.nodes) || given.nodes.length > MOST_NODES) return null;
  const known = new Map();
  for (const one of given.nodes) {
    const fits =
      isObject(one) &&
      isId(one.id) &&
      !known.has(one.id) &&
      typeof one.content === "string" &&
      ["user", "assistant"].includes(one.role) &&
      (one.parent === null || known.has(one.parent));
    if (!fits) return null;
    known.set(one.id, {
      id: one.id,
      parent: one.parent,
      role: one.role,
      content: one.content,
      created: time(one.created),
      child: one.child,
      about: one.role === "assistant" ? aboutOf(one.about) : null,
    });
  }
  const chat = {
    id: isId(given.id) ? given.id : newId(),
    title: String(given.title ?? "").slice(0, 200),
    created: time(given.created),
    updated: time(given.updated),
    settings: settingsOf(given.settings),
    child: given.child,
    nodes: [...known.values()],
  };
  for (const parent of [chat, ...chat.nodes]) {
    const own = parent === chat ? null : parent.id;
    const children = chat.nodes.filter((node) => node.parent === own);
    parent.child = children.some((node) => node.id === parent.child) ? parent.child : (children.at(-1)?.id ?? null);
  }
  return chat;
}

function settingsOf(given) {
  const settings = { ...DEFAULTS };
  for (const [name, usual] of Object.entries(DEFAULTS)) {
    const value = isObject(given) ? given[name] : undefined;
    const number = typeof value === "number" && Number.isFinite(value);
    if (typeof usual === "string" ? typeof value === "string" : number || (usual === null && value === null)) {
      settings[name] = value;
    }
  }
  return settings;
}

function aboutOf(given) {
  const about = {};
  for (const [name, kind] of Object.entries({
    model: "string",
    reason: "string",
    seed: "number",
    read: "number",
    cached: "number",
    written: "number",
    first: "number",
    speed: "number",
    rough: "boolean",
  })) {
    if (isObject(given) && typeof given[name] === kind) about[name] = given[name];
  }
  return about;
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isId(value) {
  return typeof value === "string" && /^[\w-]{1,64}$/.test(value);
}

function time(value) {
  return Number.isFinite(value) ? value : Date.now();
}
