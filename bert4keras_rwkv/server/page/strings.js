/** The words of the page, in English and Chinese, and numbers and days as each language writes them. */

import { preferences } from "./keep.js";

const ENGLISH = {
  chats: "Conversations", newChat: "New conversation", search: "Search", searchHint: "Search conversations",
  nothingFound: "Nothing found", noChats: "Your conversations will stand here. They stay in this browser.",
  rename: "Rename", remove: "Delete", name: "Name of the conversation", removed: "“{title}” is deleted.", undo: "Undo",
  today: "Today", yesterday: "Yesterday", week: "Previous 7 days", older: "Older",
  untitled: "New conversation", forked: "{title} (fork)", writingNow: "is being written",
  openList: "Show conversations", closeList: "Hide conversations", conversation: "Conversation",
  model: "Model", noModel: "Not connected", context: "{count} tokens", contextHint: "Tokens of this conversation so far",
  settings: "Settings", closeSettings: "Hide settings", dark: "Dark", light: "Light", system: "As the system",
  theme: "Colours: {now}", language: "中文", export: "Export all", import: "Import", apiKey: "API key",
  hello: "What shall we talk about?", helloMore: "{model} runs on this server. Conversations are kept in this browser.",
  helloAlone: "Conversations are kept in this browser.",
  try1: "What is a hacker?", try2: "Explain recursion to a child.", try3: "Write a haiku about the sea.",
  write: "Write a message", send: "Send", stop: "Stop", keys: "Enter sends · Shift+Enter begins a new line",
  you: "You", reply: "Reply", copy: "Copy", copied: "Copied", edit: "Edit", regenerate: "Write another reply",
  fork: "Fork here", previous: "Previous version", next: "Next version", version: "Version {now} of {all}",
  save: "Save", cancel: "Cancel", editing: "Edit the message", sendEdited: "Send", goOn: "Continue", again: "Try again",
  thinking: "Thinking …", thought: "Thoughts", waiting: "Reading …", empty: "The model ended at once, without a word.",
  ended: "The reply is there.", newest: "To the newest", code: "Code", imageLeft: "Image, not loaded: {name}",
  tokens: "{count} tokens", roughly: "about {count} tokens", speed: "{count} a second", first: "first after {count} s",
  cached: "{count} of {all} known already", readTokens: "{count} read", seedWas: "seed {seed}",
  stopped: "Stopped.", cut: "The reply broke off. What came is kept.", length: "The reply has reached its longest.",
  network: "The server does not answer. Is it running, and are you connected? Your message is kept.",
  key: "The server wants an API key.", enterKey: "Enter the key",
  busy: "Too many are asking at once. Trying again in {count} s.", busyLong: "The server is busy. Try again in a while.",
  stopping: "The server is stopping. Try again when it is back.",
  refused: "The server refused: {message}", absent: "Not found: {message}", server: "The server made a mistake. {message}",
  keyTitle: "API key", keyMore: "The server asks for a key. Whoever runs it can give you one.", keyField: "Key",
  keyRemember: "Remember it in this browser",
  systemPrompt: "System prompt", systemHint: "What the model should know or be, before the conversation",
  state: "State", noState: "None", sampling: "How words are chosen", reset: "Reset",
  temperature: "Temperature", temperatureHint: "Higher is more surprising; 0 always takes the likeliest",
  top_p: "Top P", top_pHint: "Only the likeliest words that make up this share",
  top_k: "Top K", top_kHint: "Only so many of the likeliest; 0 for all",
  presence_penalty: "Presence", presence_penaltyHint: "Against words that have come at all",
  frequency_penalty: "Frequency", frequency_penaltyHint: "Against words, the more the more often they have come",
  penalty_decay: "Decay", penalty_decayHint: "How slowly penalties are forgotten; 1 never",
  max_tokens: "Longest reply", max_tokensHint: "Tokens; empty for as many as the server allows", asServer: "as the server",
  seed: "Seed", seedHint: "The same number gives the same reply; empty for chance", chance: "chance",
  stopTexts: "Stop texts", stopHint: "One a line, up to 4; \\n is a line break",
  imported: "{count} conversations are imported.", importedNone: "All of them are here already.",
  notOurs: "That is no file of exported conversations.",
  notKept: "This browser keeps nothing: conversations last as long as this tab.",
  notSaved: "The browser could not save the conversation. Export it, to be sure.",
  stateGone: "{name} (not there)",
};

const CHINESE = {
  chats: "对话", newChat: "新对话", search: "搜索", searchHint: "搜索对话",
  nothingFound: "没有找到", noChats: "对话会列在这里，只保存在本浏览器中。",
  rename: "重命名", remove: "删除", name: "对话名称", removed: "已删除“{title}”。", undo: "撤销",
  today: "今天", yesterday: "昨天", week: "过去 7 天", older: "更早",
  untitled: "新对话", forked: "{title}（分支）", writingNow: "正在生成",
  openList: "显示对话列表", closeList: "隐藏对话列表", conversation: "对话内容",
  model: "模型", noModel: "未连接", context: "{count} 个词元", contextHint: "本对话目前的词元数",
  settings: "设置", closeSettings: "隐藏设置", dark: "深色", light: "浅色", system: "跟随系统",
  theme: "配色：{now}", language: "English", export: "全部导出", import: "导入", apiKey: "API 密钥",
  hello: "想聊些什么？", helloMore: "{model} 运行在这台服务器上，对话只保存在本浏览器中。",
  helloAlone: "对话只保存在本浏览器中。",
  try1: "什么是黑客？", try2: "给小朋友讲讲什么是递归。", try3: "写一首关于大海的短诗。",
  write: "输入消息", send: "发送", stop: "停止", keys: "Enter 发送 · Shift+Enter 换行",
  you: "你", reply: "回复", copy: "复制", copied: "已复制", edit: "编辑", regenerate: "重新生成",
  fork: "从这里分支", previous: "上一个版本", next: "下一个版本", version: "第 {now} 个版本，共 {all} 个",
  save: "保存", cancel: "取消", editing: "编辑消息", sendEdited: "发送", goOn: "继续", again: "重试",
  thinking: "思考中……", thought: "思考过程", waiting: "阅读中……", empty: "模型没有写任何内容就结束了。",
  ended: "回复已完成。", newest: "回到最新", code: "代码", imageLeft: "未加载的图片：{name}",
  tokens: "{count} 个词元", roughly: "约 {count} 个词元", speed: "每秒 {count} 个", first: "首个用时 {count} 秒",
  cached: "{all} 个中有 {count} 个已缓存", readTokens: "读入 {count} 个", seedWas: "种子 {seed}",
  stopped: "已停止。", cut: "回复中断了，已收到的内容仍保留。", length: "回复已达到长度上限。",
  network: "服务器没有响应。请确认它在运行，并检查网络连接。你的消息已保留。",
  key: "服务器需要 API 密钥。", enterKey: "输入密钥",
  busy: "当前请求过多，{count} 秒后自动重试。", busyLong: "服务器繁忙，请稍后重试。",
  stopping: "服务器正在停止，请待其恢复后重试。",
  refused: "服务器拒绝了请求：{message}", absent: "未找到：{message}", server: "服务器出错了。{message}",
  keyTitle: "API 密钥", keyMore: "服务器需要密钥，请向服务器的管理者索取。", keyField: "密钥",
  keyRemember: "在本浏览器中记住",
  systemPrompt: "系统提示词", systemHint: "对话开始之前，模型应当知道什么、扮演什么",
  state: "初始状态", noState: "无", sampling: "采样参数", reset: "恢复默认",
  temperature: "温度", temperatureHint: "越高越出人意料；0 总是取最可能的词",
  top_p: "Top P", top_pHint: "只在累计概率达到此值的词中选取",
  top_k: "Top K", top_kHint: "只在最可能的若干个词中选取；0 为不限",
  presence_penalty: "存在惩罚", presence_penaltyHint: "降低已出现过的词的概率",
  frequency_penalty: "频率惩罚", frequency_penaltyHint: "出现越多，概率降得越多",
  penalty_decay: "惩罚衰减", penalty_decayHint: "惩罚被遗忘的快慢；1 为永不遗忘",
  max_tokens: "最长回复", max_tokensHint: "词元数；留空则由服务器决定", asServer: "由服务器决定",
  seed: "随机种子", seedHint: "相同的种子得到相同的回复；留空为随机", chance: "随机",
  stopTexts: "停止文本", stopHint: "每行一个，最多 4 个；\\n 表示换行",
  imported: "已导入 {count} 个对话。", importedNone: "这些对话都已存在。",
  notOurs: "这不是导出的对话文件。",
  notKept: "此浏览器不保存数据：关闭标签页后对话将丢失。",
  notSaved: "浏览器未能保存此对话，建议先导出。",
  stateGone: "{name}（已不存在）",
};

const TEXTS = { en: ENGLISH, zh: CHINESE };
const TAGS = { en: "en", zh: "zh-CN" };
let language = preferences.get("language") ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");

/** The language of the page as a tag: "en" or "zh-CN". */
export function tag() {
  return TAGS[language];
}

/** Change to the other language, and remember it. */
export function otherLanguage() {
  language = language === "zh" ? "en" : "zh";
  preferences.set("language", language);
}

/** A text of the page, with the values that it names in braces. */
export function say(name, values = {}) {
  return TEXTS[language][name].replace(/\{(\w+)\}/g, (_, value) => values[value]);
}

/** A number as it is written. digits: behind the point at most. */
export function number(value, digits = 0) {
  return new Intl.NumberFormat(tag(), { maximumFractionDigits: digits }).format(value);
}
