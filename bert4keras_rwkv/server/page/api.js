/** What is asked of the server, and what can go wrong with it, by kind. */

import { events } from "./sse.js";
import { preferences } from "./keep.js";

/**
 * What went wrong. kind: "network" (nobody answers), "cut" (an answer broke off), "key" (none was shown), "keyWrong",
 * "keyLetters" (it has letters that cannot be sent), "busy", "stopping", "absent", "refused" (the request is wrong),
 * "server". message: what the server says, "" for nothing. wait: seconds, for "busy".
 */
export class Trouble extends Error {
  constructor(kind, message = "", wait = 1) {
    super(message);
    this.kind = kind;
    this.wait = wait;
  }
}

const UNSENDABLE = /[^\u0020-\u00ff]/; // in a header
const KINDS = { 401: "key", 404: "absent", 429: "busy", 503: "stopping" };

/** The API key, "" for none. It stays with this tab, or with the browser if the user says so. */
export const key = {
  get: () => preferences.session.get("key") || preferences.get("key") || "",
  set(value, remember) {
    preferences.session.set("key", remember ? "" : value);
    preferences.set("key", remember ? value : "");
  },
  remembered: () => Boolean(preferences.get("key")),
};

/** Whether another API key is the way out of what went wrong. */
export function wantsKey(trouble) {
  return ["key", "keyWrong", "keyLetters"].includes(trouble?.kind);
}

/** The names that the server offers for a setting, null as long as nobody has told. */
export const offers = {
  state: null,
  mode: null,
  /** Whether a setting names something that the server does not have. */
  lack: (settings, name) => Boolean(settings[name] && offers[name] && !offers[name].includes(settings[name])),
};

async function ask(place, options = {}) {
  const headers = { ...(options.body && { "Content-Type": "application/json" }) };
  const shown = key.get();
  if (UNSENDABLE.test(shown)) throw new Trouble("keyLetters");
  if (shown) headers.Authorization = `Bearer ${shown}`;
  let answer;
  try {
    answer = await fetch(new URL(place, document.baseURI), { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble("network");
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => null); // a proxy may answer with a page of its own
  const usual = KINDS[answer.status] ?? (answer.status < 500 ? "refused" : "server");
  const kind = usual === "key" && shown ? "keyWrong" : usual;
  const message = typeof said?.error?.message === "string" ? said.error.message : `HTTP ${answer.status}`;
  throw new Trouble(kind, message, Number(answer.headers.get("Retry-After")) || 1);
}

/** The model that answers: {name, modes}. modes: in which it can think before it answers, none for most. */
export async function theModel() {
  const [model] = (await (await ask("v1/models")).json()).data;
  return { name: String(model.id), modes: (model.modes ?? []).map(String) };
}

/** The names of the states that a conversation can begin with, which are not sessions; none where none are kept. */
export async function stateNames() {
  try {
    const { data } = await (await ask("v1/states")).json();
    return data.filter((one) => !["session", "response"].includes(one.kind)).map((one) => String(one.id));
  } catch (trouble) {
    if (trouble.kind === "absent") return [];
    throw trouble;
  }
}

/** The chunks of a reply as they come. Throws a Trouble, or an AbortError if `signal` says so. */
export async function* chunks(request, signal) {
  const answer = await ask("v1/chat/completions", { method: "POST", body: JSON.stringify(request), signal });
  const coming = events(answer.body);
  for (;;) {
    const { done, value } = await next(coming);
    if (done) throw new Trouble("cut");
    if (value === "[DONE]") return;
    const chunk = parsed(value);
    if (chunk.error) throw new Trouble("server", String(chunk.error.message ?? ""));
    yield chunk;
  }
}

async function next(coming) {
  try {
    return await coming.next();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble("cut");
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new Trouble("cut");
  }
}
