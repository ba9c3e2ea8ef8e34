/** The page as a whole: which part hears of what, and the keys. */

import { offers, stateNames, theModel, Trouble, wantsKey } from "./api.js";
import { Chats } from "./chats.js";
import { Composer } from "./composer.js";
import { announce, askForKey, download, tell, wireKey } from "./dialogs.js";
import { byId, copied, icon } from "./dom.js";
import { preferences } from "./keep.js";
import { List } from "./list.js";
import { split } from "./markdown.js";
import { Panel } from "./panel.js";
import { Replies } from "./replies.js";
import { number, otherLanguage, say, tag } from "./strings.js";
import { Thread, tick } from "./thread.js";
import { add, choose, fork, nodeOf, path, versions } from "./tree.js";

const THEMES = ["system", "light", "dark"];
const narrow = window.matchMedia("(max-width: 56rem)");
const waiting = new Set(); // nodes to show with the next frame
let model = "";

const replies = new Replies({ changed: replyChanged, save: (chat) => chats.has(chat.id) && chats.save(chat) });
const chats = await Chats.open({
  changed: (id) => {
    if (id === chats.current.id) chats.show(id);
    showAll();
  },
  busy: (chat) => replies.has(chat),
  failed: () => tell(say("notSaved")),
});
const thread = new Thread({ act, modelName: () => model });
const list = new List({ chats, writing: (chat) => replies.has(chat), act: listAct });
const panel = new Panel({
  changed: (chat) => {
    chats.saveSettings(chat);
    showState();
  },
});
const composer = new Composer({ send, stop, editLast });

function showAll(afresh = false) {
  const chat = chats.current;
  thread.show(chat, afresh);
  list.show();
  panel.show(chat);
  showState();
}

function showState() {
  const chat = chats.current;
  composer.show(chats.has(chat.id) ? chat.id : "new", replies.has(chat));
  const title = chat.title || say("untitled");
  byId("title").textContent = title;
  document.title = chats.has(chat.id) ? title : model || say("untitled");
  byId("model").textContent = model || say("noModel");
  const last = path(chat).findLast((node) => node.about?.written);
  const tokens = last ? (last.about.read ?? 0) + last.about.written : 0;
  byId("context").textContent = last?.about.read ? say("context", { count: number(tokens) }) : "";
  byId("lacking").textContent = Object.entries({ state: "state", mode: "thought" })
    .filter(([name]) => offers.lack(chat.settings, name))
    .map(([name, label]) => `${say(label)}: ${say("gone", { name: chat.settings[name] })}`)
    .join(" · ");
}

function showWords() {
  document.documentElement.lang = tag();
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = say(element.dataset.text);
  for (const element of document.querySelectorAll("[data-label]")) {
    const label = say(element.dataset.label);
    element.setAttribute("aria-label", label);
    if (element.matches("button")) element.title = label;
  }
  byId("search").placeholder = say("search");
  byId("language").lang = tag() === "en" ? "zh-CN" : "en";
  showTheme();
}

function showTheme() {
  const theme = preferences.get("theme") ?? "system";
  document.documentElement.dataset.theme = theme;
  const label = say("theme", { now: say(theme) });
  byId("theme").setAttribute("aria-label", label);
  byId("theme").title = label;
  byId("theme").replaceChildren(icon(theme));
}

function replyChanged(chat, node) {
  if (!node.about.writing) {
    waiting.delete(node);
    list.show();
    announce(node.about.reason === "stop" ? `${say("ended")} ${split(node.content).text}` : "");
    if (node.about.model) model = node.about.model;
    const { kind } = node.about.trouble ?? {};
    if (wantsKey(node.about.trouble)) enterKey(kind);
    const { state, mode } = chat.settings;
    if (["absent", "refused"].includes(kind) && (state || mode)) connect(); // the server may be another one by now
  }
  if (chat !== chats.current) return;
  if (!node.about.writing) {
    thread.update(node);
    showState();
  } else if (!waiting.size) {
    waiting.add(node);
    requestAnimationFrame(() => {
      for (const one of waiting) thread.update(one);
      waiting.clear();
    });
  }
}

function send(text) {
  const chat = chats.current;
  const said = add(chat, path(chat).at(-1) ?? null, "user", text);
  chats.save(chat);
  reply(chat, said);
  composer.focus();
}

function stop() {
  if (!replies.has(chats.current)) return;
  replies.stop(chats.current);
  composer.focus();
}

/** Have a reply written behind a message. */
function reply(chat, said) {
  const node = add(chat, said, "assistant", "", {});
  write(chat, node);
}

async function write(chat, node, goOn = false) {
  if (replies.has(chat)) return;
  const done = replies.write(chat, node, goOn);
  showAll();
  thread.toEnd();
  await done;
}

const ACTIONS = {
  suggestion: (chat, node, text) => send(text),
  regenerate: (chat, node) => reply(chat, nodeOf(chat, node.parent)),
  again: (chat, node) => write(chat, node),
  goOn: (chat, node) => write(chat, node, true),
  key: (chat, node) => enterKey(node.about.trouble.kind),
  edited(chat, node, text) {
    const said = add(chat, nodeOf(chat, node.parent) ?? null, node.role, text, node.role === "assistant" ? {} : null);
    chats.save(chat);
    if (node.role === "user") {
      reply(chat, said);
      composer.focus();
    } else {
      showAll();
      thread.focus(said, "edit");
    }
  },
  fork(chat, node) {
    const copy = fork(chat, node, say("forked", { title: chat.title || say("untitled") }));
    chats.save(copy);
    open(copy);
  },
  previous: (chat, node) => leaf(chat, node, -1, "previous"),
  next: (chat, node) => leaf(chat, node, 1, "next"),
};

async function act(what, node, text, button) {
  if (what === "copy") {
    if (await copied(text)) {
      tick(button, "copy");
      announce(say("copied"));
    }
    return;
  }
  const chat = chats.current;
  const keeps = ["fork", "key"].includes(what); // what may be done while a reply comes
  if (replies.has(chat) && !keeps) return;
  ACTIONS[what](chat, node, text);
}

function leaf(chat, node, step, what) {
  const all = versions(chat, node);
  const wanted = all[all.indexOf(node) + step];
  choose(chat, wanted);
  chats.save(chat);
  const { follows } = thread;
  thread.follows = false;
  showAll();
  thread.follows = follows;
  thread.focus(wanted, what);
}

function editLast() {
  const last = path(chats.current).findLast((node) => node.role === "user");
  if (!last || replies.has(chats.current)) return false;
  thread.edit(last);
  return true;
}

function listAct(what, chat, text) {
  if (what === "open") open(chat);
  if (what === "renamed") {
    chat.title = text;
    chats.save(chat);
    showState();
  }
  if (what === "remove") {
    replies.stop(chat);
    const shown = chat === chats.current;
    chats.remove(chat);
    showAll();
    byId("search").focus();
    tell(say("removed", { title: chat.title || say("untitled") }), () => {
      chats.save(chat);
      if (shown) chats.show(chat.id);
      showAll();
    });
  }
}

function open(chat) {
  chats.show(chat?.id);
  if (narrow.matches) showSide("list", false);
  showAll();
  composer.focus();
}

/** kind: of the trouble with the key that is there, if there is any. */
async function enterKey(kind = "key") {
  if (!(await askForKey(kind === "key" ? "" : say(kind)))) return;
  await connect();
  const chat = chats.current;
  const last = path(chat).at(-1);
  if (wantsKey(last?.about?.trouble)) write(chat, last, Boolean(last.content));
}

/** Learn which model answers, and which states there are. */
async function connect() {
  try {
    ({ name: model, modes: offers.mode } = await theModel());
    offers.state = await stateNames();
  } catch (error) {
    if (!(error instanceof Trouble)) throw error;
    if (wantsKey(error)) enterKey(error.kind);
  }
  showAll();
}

/** Open or close the list of conversations or the settings, as the user wishes. */
function moveSide(side, opens) {
  showSide(side, opens);
  if (narrow.matches) byId(opens ? `${side}-close` : `${side}-button`).focus();
  else preferences.set(side, opens ? "open" : "closed");
}

function showSide(side, opens) {
  document.body.dataset[side] = opens ? "open" : "closed";
  byId(`${side}-button`).setAttribute("aria-expanded", String(opens));
  byId(side).inert = !opens;
  byId("main").inert = narrow.matches && ["list", "settings"].some((one) => document.body.dataset[one] === "open");
}

function closeOverlays() {
  const opened = ["settings", "list"].find((side) => document.body.dataset[side] === "open");
  if (narrow.matches && opened) moveSide(opened, false);
  return narrow.matches && Boolean(opened);
}

function layOut() {
  showSide("list", !narrow.matches && preferences.get("list") !== "closed");
  showSide("settings", !narrow.matches && preferences.get("settings") === "open");
}

async function importFile(field) {
  const [file] = field.files;
  field.value = "";
  const count = await chats.imported(await file.text());
  tell(count === null ? say("notOurs") : count ? say("imported", { count: number(count) }) : say("importedNone"));
  showAll();
}

function nextTheme() {
  const now = THEMES.indexOf(preferences.get("theme") ?? "system");
  preferences.set("theme", THEMES[(now + 1) % THEMES.length]);
  showTheme();
}

function pressed(event) {
  const { code, key } = event;
  if ((event.ctrlKey || event.metaKey) && !event.altKey && key.toLowerCase() === "k") {
    event.preventDefault();
    moveSide("list", true);
    byId("search").focus();
    byId("search").select();
  } else if (event.altKey && !event.ctrlKey && code === "KeyN") {
    event.preventDefault();
    open(null);
  } else if (key === "Escape" && !event.isComposing && !byId("key").open) {
    if (!closeOverlays()) stop();
  }
}

const CLICKS = {
  "new-chat": () => open(null),
  "list-button": () => moveSide("list", document.body.dataset.list !== "open"),
  "list-close": () => moveSide("list", false),
  "settings-button": () => moveSide("settings", document.body.dataset.settings !== "open"),
  "settings-close": () => moveSide("settings", false),
  scrim: closeOverlays,
  theme: nextTheme,
  language() {
    otherLanguage();
    showWords();
    showAll(true);
  },
  export: () => download(`conversations-${new Date().toISOString().slice(0, 10)}.json`, chats.exported()),
  import: () => byId("file").click(),
  "api-key": () => enterKey(),
};

for (const place of document.querySelectorAll("[data-icon]")) place.prepend(icon(place.dataset.icon));
for (const [id, does] of Object.entries(CLICKS)) byId(id).addEventListener("click", does);
byId("file").addEventListener("change", (event) => importFile(event.target));
document.addEventListener("keydown", pressed);
window.addEventListener("online", connect);
narrow.addEventListener("change", layOut);
wireKey();
showWords();
layOut();
showAll();
composer.focus();
if (!chats.keep.lasting) tell(say("notKept"));
await connect();
document.body.dataset.ready = "yes";
