"""The chat page as a person meets it, in a real Chromium; and what a browser is told beside its files."""

import json
import shutil

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from bert4keras_rwkv.server.access import LOCAL_NAMES, Access
from bert4keras_rwkv.server.app import make_app
from bert4keras_rwkv.server.page_routes import FILES, FOLDER, page_routes
from bert4keras_rwkv.server.scheduler import Scheduler
from bert4keras_rwkv.server.service import Service
from bert4keras_rwkv.templates import template_of
from tests.server.models import endless
from tests.server.page_server import KEY, Scripted, served

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
EVIL = """<script>window.harm = 1</script><img src=x onerror="window.harm = 2">

[a link](javascript:window.harm=3) ![a picture](https://elsewhere.example/p.png "a") <svg onload="window.harm = 4">

<a href="data:text/html,x" onclick="window.harm = 5" id="send" style="position:fixed">b</a> <iframe src="/"></iframe>

[good](https://good.example/ "ok") ![dot](data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=)"""
THOUGHT = "<think>Let me *see*.\n\nYes.</think>\n\nA **kluge** is 一个*办法*.\n\n```python\nprint(1)\n```"
# What a screen reader says to a button, a link, or a field.
NAMELESS = """() => [...document.querySelectorAll('button, a, input, textarea, select, summary, [role=region]')]
    .filter(e => e.checkVisibility() && !(e.getAttribute('aria-label') || e.textContent.trim()
        || [...(e.labels ?? [])].some(l => l.textContent.trim())))
    .map(e => e.outerHTML)"""


@pytest.fixture(scope="module")
def browser():
    """Chromium, or a skip that says what is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium is on the PATH")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def place():
    """A scripted server, and its address."""
    scripted = Scripted({"evil": EVIL, "kluge": THOUGHT})
    with served(scripted.app) as address:
        yield scripted, address


@pytest.fixture
def scripted(place):
    """The scripted server, which has heard nothing yet."""
    place[0].begin()
    return place[0]


@pytest.fixture
def address(place):
    return place[1]


class Person:
    """Who sits before the page at an address. complaints: errors of its console, which a test may expect."""

    def __init__(self, browser, address, **options):
        self.context = browser.new_context(**{"locale": "en-US", **options})
        self.context.set_default_timeout(8000)
        self.page = self.context.new_page()
        self.complaints = []
        self.page.on("console", lambda m: m.type in ("error", "warning") and self.complaints.append(m.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(address)
        self.ready()

    def ready(self):
        self.page.wait_for_selector("body[data-ready]")

    def until(self, condition):
        """Wait for an expression of the page to be true."""
        self.page.wait_for_function(f"() => {condition}")

    def says(self, text):
        """Type a message and send it."""
        self.page.fill("#message", text)
        self.page.press("#message", "Enter")

    def hears(self, count):
        """The texts of the replies, as soon as there are `count` and none is being written."""
        self.page.wait_for_function(
            "count => { const all = [...document.querySelectorAll('article.assistant')];"
            "return all.length === count && all.every(one => one.getAttribute('aria-busy') === 'false') }",
            arg=count,
        )
        return self.page.locator("article.assistant > .prose").all_inner_texts()

    def does(self, what, which=-1):
        """Press a button of a message."""
        self.page.locator(f'#messages [data-do="{what}"]').nth(which).click()

    def focused(self):
        return self.page.evaluate("document.activeElement.id")

    def messages(self):
        return [text.strip() for text in self.page.locator("article > .text, article > .prose").all_inner_texts()]

    def settings(self):
        """System prompt, state, mode, temperature, stop texts, as the panel shows them."""
        return [self.page.input_value(f"#set-{name}") for name in ("system", "state", "mode", "temperature", "stop")]

    def titles(self):
        return self.page.locator("#chats .title").all_inner_texts()


@pytest.fixture
def person(browser, scripted, address):
    """Someone before the page, of which nothing was complained in the end, and whose policy stopped nothing."""
    person = Person(browser, address)
    yield person
    person.context.close()
    assert person.complaints == []


def test_each_file_has_its_kind_and_the_strict_headers():
    app = FastAPI()
    app.include_router(page_routes())
    client = TestClient(app)
    assert {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.*")} <= set(FILES)
    for name in FILES:
        path = "/" if name == "index.html" else f"/page/{name}"
        answer = client.get(path)
        assert answer.content == (FOLDER / name).read_bytes()
        rules = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
        assert (rules["default-src"], rules["script-src"]) == ("'none'", "'self'")
        assert (rules["style-src"], rules["connect-src"]) == ("'self'", "'self'")
        assert {rules[name] for name in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        again = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert client.head(path).headers["etag"] == answer.headers["etag"]
    assert client.get("/").headers["content-type"] == "text/html; charset=utf-8"
    assert client.get("/page/app.js").headers["content-type"].startswith("text/javascript")
    for path in ("/page/", "/page/../app.py", "/page/%2e%2e/app.py", "/page//etc/passwd", "/page/app.mjs"):
        assert client.get(path).status_code == 404


def test_the_page_names_only_files_that_are_there():
    """No script or style in the page itself, nothing from elsewhere, and each text that it names in both languages."""
    html = (FOLDER / "index.html").read_text("utf-8")
    assert "<style" not in html and " style=" not in html and "//" not in html and html.count("<script") == 1
    for file in FOLDER.glob("*.js"):
        text = file.read_text("utf-8")
        assert "innerHTML" not in text and "eval(" not in text
        for line in text.splitlines():
            if line.startswith(("import ", "} from")):
                assert (file.parent / line.split('"')[1]).is_file()


def test_a_conversation_streams_and_shows_what_it_cost(person, scripted):
    scripted.pause = 0.05
    person.says("你好，世界 é 🙂")
    person.page.wait_for_function(
        "() => document.querySelector('article.assistant > .prose')?.innerText.includes('Reply')"
    )
    assert person.page.get_attribute("article.assistant", "aria-busy") == "true"  # it is read while it comes
    assert person.hears(1) == ["Reply 1 to 你好，世界 é 🙂."]
    assert person.page.locator("article.assistant strong").inner_text() == "你好，世界 é 🙂"
    figures = person.page.locator("article.assistant .figures")
    assert figures.text_content().startswith("42 tokens · ") and "a second · first after" in figures.text_content()
    assert "1,001 read" in figures.get_attribute("title")
    assert person.page.inner_text("#model") == "scripted" and person.page.inner_text("#context") == "1,043 tokens"
    person.says("more")
    person.hears(2)
    told = scripted.asked[-1]
    assert [message["role"] for message in told["messages"]] == ["user", "assistant", "user"]
    assert told["messages"][1]["content"] == "Reply 1 to **你好，世界 é 🙂**."
    assert (told["temperature"], told["top_p"], told["penalty_decay"]) == (1, 0.3, 0.996)
    assert told["presence_penalty"] == told["frequency_penalty"] == 0.5
    assert "state" not in told and "max_tokens" not in told and told["stream_options"] == {"include_usage": True}
    assert "42" not in person.page.inner_text("#announced") and "Reply 2" in person.page.inner_text("#announced")


def test_events_are_read_wherever_they_are_cut(person):
    """Byte by byte, and with lines that end as LF, CR, or both."""
    read = person.page.evaluate(
        """async () => {
            const { events } = await import('/page/sse.js');
            const lines = ['data: é🙂', '', ': no', 'id: 3', 'data:a', 'data: b', '', 'data: [DONE]', '', 'data: cut'];
            const all = [];
            for (const end of ['\\n', '\\r', '\\r\\n']) {
                const bytes = new TextEncoder().encode(lines.join(end));
                for (const size of [1, 2, 5, 1000]) {
                    const stream = new ReadableStream({ start(to) {
                        for (let at = 0; at < bytes.length; at += size) to.enqueue(bytes.slice(at, at + size));
                        to.close();
                    } });
                    const found = [];
                    for await (const data of events(stream)) found.push(data);
                    all.push(JSON.stringify(found));
                }
            }
            return [...new Set(all)];
        }"""
    )
    assert [json.loads(one) for one in read] == [["é🙂", "a\nb", "[DONE]"]]


def test_stop_keeps_what_came_and_continue_goes_on(person, scripted):
    person.says("endless")
    person.page.wait_for_function(
        "() => document.querySelector('article.assistant > .prose')?.innerText.includes('word9')"
    )
    person.page.keyboard.press("Escape")
    (text,) = person.hears(1)
    assert "Stopped." in person.page.inner_text("article.assistant .note")
    assert person.focused() == "message"
    person.does("goOn")
    (longer,) = person.hears(1)
    assert longer.startswith(text) and longer.endswith("and on.")
    told = scripted.asked[-1]
    assert told["messages"][-1] == {"role": "assistant", "content": longer.removesuffix("and on.")}
    assert told["continue_final_message"] is True and scripted.gone == 1
    person.page.fill("#message", "endless")
    for _ in ("send", "stop"):
        person.page.click("#send")
        person.page.evaluate("() => new Promise(requestAnimationFrame)")  # a frame takes it from what is disabled
        assert person.focused() == "message"
    person.hears(2)


@pytest.mark.parametrize("viewport", [{"width": 1200, "height": 800}, {"width": 740, "height": 390}])
def test_the_buttons_of_an_edited_message_stay_in_sight(browser, scripted, address, viewport):
    """However long it is, while it grows, and when the window becomes lower."""
    person = Person(browser, address, viewport=viewport)
    person.says("a line\n" * 300 + "the end")
    person.hears(1)
    sees = """() => {
        const save = document.querySelector('[data-do="saveEdit"]').getBoundingClientRect();
        const field = document.querySelector('.editor textarea');
        const [top, part] = [field.getBoundingClientRect().top, document.getElementById('scroll')];
        const {top: from, bottom: to} = part.getBoundingClientRect();
        return top >= from && save.bottom <= to && field.scrollHeight > field.clientHeight;
    }"""
    for role in ("user", "assistant"):
        person.page.locator(f'article.{role} [data-do="edit"]').click()
        assert person.page.evaluate(sees), role
        person.page.keyboard.press("Shift+Enter")
        person.page.keyboard.type("more")
        assert person.page.evaluate(sees), role
        person.page.set_viewport_size({**viewport, "height": viewport["height"] - 60})
        person.page.wait_for_function(sees)
        person.page.set_viewport_size(viewport)
        person.page.keyboard.press("Escape")
    assert person.complaints == []
    person.context.close()


def test_versions_edits_and_forks_are_a_tree_that_a_reload_keeps(person):
    person.says("one")
    person.hears(1)
    person.does("regenerate")
    assert person.hears(1) == ["Reply 2 to one."]
    person.does("previous")
    assert person.hears(1) == ["Reply 1 to one."]
    assert "Version 1 of 2" in person.page.inner_text("article.assistant .which")
    person.says("two")
    person.hears(2)
    person.does("edit", 0)
    person.page.fill(".editor textarea", "another one")
    person.page.press(".editor textarea", "Enter")
    person.hears(1)
    assert person.messages() == ["another one", "Reply 4 to another one."]
    person.does("previous", 0)
    first = ["one", "Reply 1 to one.", "two", "Reply 3 to two."]
    assert person.hears(2) and person.messages() == first
    person.does("fork", 1)
    assert person.messages() == first[:2]
    person.says("three")
    person.hears(2)
    assert person.titles() == ["one (fork)", "one"]
    person.page.fill("#message", "not sent yet")
    person.page.reload()
    person.ready()
    assert person.messages() == [*first[:2], "three", "Reply 5 to three."]
    assert person.page.input_value("#message") == "not sent yet"
    person.page.locator("#chats .open").nth(1).click()
    assert person.messages() == first and person.page.input_value("#message") == ""


def test_two_tabs_show_the_same(person, address):
    person.says("one")
    person.hears(1)
    other = person.context.new_page()
    other.goto(address)
    other.wait_for_selector("body[data-ready]")
    other.click("#chats .open")
    person.says("two")
    person.hears(2)
    other.wait_for_selector("text=Reply 2 to two.")
    other.click('[data-do="remove"]')
    person.page.wait_for_selector("#hello")
    assert person.titles() == person.messages() == []
    other.close()


def test_the_side_bar_searches_renames_deletes_and_takes_files(person, tmp_path):
    for text in ("apples", "pears"):
        person.says(text)
        person.hears(1)
        person.page.click("#new-chat")
    person.page.fill("#search", "reply 1")
    assert person.titles() == ["apples"]
    person.page.fill("#search", "")
    person.page.locator("#chats li").nth(1).hover()
    person.page.locator('#chats [data-do="rename"]').nth(1).click()
    person.page.keyboard.type("Fruit")
    person.page.keyboard.press("Enter")
    assert person.titles() == ["pears", "Fruit"]
    with person.page.expect_download() as download:
        person.page.click("#export")
    file = tmp_path / "conversations.json"
    download.value.save_as(file)
    person.page.locator("#chats .open").nth(0).click()
    person.page.keyboard.press("Control+k")
    person.page.keyboard.press("ArrowDown")
    person.page.keyboard.press("Delete")
    assert person.titles() == ["Fruit"] and person.messages() == []
    person.page.click("#toasts button")  # undo
    assert person.titles() == ["pears", "Fruit"] and person.messages() == ["pears", "Reply 2 to pears."]
    person.page.locator("#chats li").nth(1).hover()
    person.page.locator('#chats [data-do="remove"]').nth(1).click()
    person.page.set_input_files("#file", file)
    person.page.wait_for_selector("text=1 conversations are imported.")
    assert person.titles() == ["pears", "Fruit"]
    broken = json.loads(file.read_text("utf-8"))
    broken["conversations"][0]["nodes"][0]["parent"] = "nowhere"
    for wrong in ("{", "[]", json.dumps(broken)):
        file.write_text(wrong, "utf-8")
        person.page.set_input_files("#file", file)
        person.page.wait_for_selector("text=That is no file of exported conversations.")
        person.page.evaluate("document.getElementById('toasts').replaceChildren()")
    assert person.titles() == ["pears", "Fruit"]


def test_a_reply_with_a_script_does_nothing(person):
    """It is shown as it was written, and the policy had nothing to stop."""
    person.page.evaluate(
        "() => { window.stopped = []; document.addEventListener('securitypolicyviolation',"
        "event => window.stopped.push(event.violatedDirective)) }"
    )
    person.says("evil")
    (text,) = person.hears(1)
    assert person.page.evaluate("[window.harm ?? null, window.stopped]") == [None, []]
    assert "<script>window.harm = 1</script>" in text and "<iframe" in text
    prose = person.page.locator("article.assistant > .prose")
    assert prose.locator("script, iframe, svg:not(.icon), [onerror], [onclick], [onload], [style], #send").count() == 0
    links = prose.locator("a[href]")
    assert links.evaluate_all("all => all.map(a => a.href)") == [
        "https://elsewhere.example/p.png",
        "https://good.example/",
    ]
    assert {*links.evaluate_all("all => all.map(a => a.rel)")} == {"noopener noreferrer nofollow"}
    assert prose.locator("img").evaluate_all("all => all.map(i => i.src.slice(0, 14))") == ["data:image/gif"]


def test_thoughts_are_folded_and_code_is_copied(person):
    person.context.grant_permissions(["clipboard-read", "clipboard-write"])
    person.says("kluge")
    (text,) = person.hears(1)
    assert text.startswith("A kluge is 一个办法.") and "think" not in text
    thought = person.page.locator(".thought .prose")
    assert not thought.is_visible()
    person.page.click(".thought summary")
    assert thought.inner_text().split() == ["Let", "me", "see.", "Yes."]
    person.does("copyCode")
    person.until("document.getElementById('announced').innerText === 'Copied'")
    assert person.page.evaluate("navigator.clipboard.readText()").strip() == "print(1)"


def test_settings_are_sent_and_kept(person, scripted):
    person.page.click("#settings-button")
    for name, value in {"system": "Be brief.", "temperature": "0.4", "seed": "7", "max_tokens": "50"}.items():
        person.page.fill(f"#set-{name}", value)
    person.page.fill("#set-stop", "END\n\\n\\n")
    person.page.locator('input[type="range"][aria-label="Decay"]').press("End")
    assert person.page.locator("#set-state option").all_text_contents() == ["None", "lawyer", "诗人"]
    person.page.select_option("#set-state", "诗人")
    person.page.select_option("#set-mode", "on")
    person.says("a")
    person.hears(1)
    told = scripted.asked[-1]
    assert told["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (told["temperature"], told["seed"], told["max_tokens"], told["state"]) == (0.4, 7, 50, "诗人")
    assert told["stop"] == ["END", "\n\n"] and told["mode"] == "on" and "penalty_decay" not in told
    person.page.reload()
    person.ready()
    assert person.page.input_value("#set-system") == "Be brief." and person.page.input_value("#set-state") == "诗人"
    person.page.click("#fields button")
    assert person.settings() == ["", "", "", "1", ""]
    person.page.click("#toasts button")  # undo
    assert person.settings() == ["Be brief.", "诗人", "on", "0.4", "END\n\\n\\n"]


def test_a_new_conversation_inherits_only_how_words_are_chosen(person, scripted):
    """A fork is the same conversation, and has all of it."""
    person.page.click("#settings-button")
    chosen = ["Be brief.", "lawyer", "on", "0.4", "END"]
    person.page.fill("#set-system", chosen[0])
    person.page.select_option("#set-state", chosen[1])
    person.page.select_option("#set-mode", chosen[2])
    person.page.fill("#set-temperature", chosen[3])
    person.page.fill("#set-stop", chosen[4])
    person.says("a")
    person.hears(1)
    person.does("fork")
    assert person.settings() == chosen
    person.page.click("#new-chat")
    assert person.settings() == ["", "", "", "0.4", "END"]
    person.says("b")
    person.hears(1)
    told = scripted.asked[-1]
    assert told["messages"] == [{"role": "user", "content": "b"}] and told["temperature"] == 0.4
    assert not {"state", "mode"} & set(told)


def test_what_the_server_has_no_more_is_not_sent_and_said(person, scripted):
    """While the page is open, the first refusal tells. As long as the server has told nothing, all is sent."""
    person.page.click("#settings-button")
    person.page.select_option("#set-state", "lawyer")
    person.page.select_option("#set-mode", "on")
    assert not person.page.locator(".warns:visible").count()
    scripted.states, scripted.modes = ("诗人",), []
    person.says("a")
    person.hears(1)
    assert scripted.asked[-1]["state"] == "lawyer"
    person.page.wait_for_selector("#hint-state:visible")
    hint = person.page.locator("#hint-state")
    assert hint.inner_text() == "The server has no “lawyer”. Replies come without it."
    assert person.page.inner_text("#hint-mode") == "The server has no “on”. Replies come without it."
    assert person.page.inner_text("#lacking") == "State: lawyer (not there) · Thoughts: on (not there)"
    assert person.page.inner_text("#set-state option:checked") == "lawyer (not there)"
    person.does("again")
    assert person.hears(1) == ["Reply 2 to a."] and not {"state", "mode"} & set(scripted.asked[-1])
    person.page.reload()
    person.ready()
    person.says("b")
    assert person.hears(2)[1] == "Reply 3 to b." and not {"state", "mode"} & set(scripted.asked[-1])
    person.page.select_option("#set-state", "诗人")
    assert not hint.is_visible() and person.page.inner_text("#lacking") == "Thoughts: on (not there)"
    person.context.route("**/v1/models", lambda route: route.abort())
    person.page.reload()
    person.ready()
    assert not person.page.locator(".warns:visible").count()
    person.says("c")
    person.hears(3)
    assert (scripted.asked[-1]["state"], scripted.asked[-1]["mode"]) == ("诗人", "on")
    excused(person)


EXPECTED = "Failed to load resource"  # what Chromium's console says of an answer that is an error


def excused(person):
    """Forget the complaints about answers that are errors."""
    person.complaints[:] = [text for text in person.complaints if not text.startswith(EXPECTED)]


def test_errors_are_told_in_plain_words_and_nothing_is_lost(person, scripted):
    person.says("refused")
    person.hears(1)
    note = person.page.locator("article.assistant .note")
    assert note.inner_text().startswith("The server refused: `top_p`: <b>wrong</b>.")
    assert note.get_attribute("role") == "alert"
    person.says("cut")
    assert person.hears(2)[1].startswith("Reply 2 to")
    assert "broke off" in note.nth(1).inner_text()
    person.does("goOn")
    assert person.hears(2)[1].endswith("and on.")
    person.says("stopping")
    person.hears(3)
    assert "stopping" in note.nth(2).inner_text()
    person.page.fill("#message", "typed without a net")
    person.context.set_offline(True)
    person.does("again")
    person.hears(3)
    assert "does not answer" in note.nth(2).inner_text()
    person.page.press("#message", "Enter")
    person.hears(4)
    assert person.messages()[-2] == "typed without a net" and "does not answer" in note.nth(3).inner_text()
    person.context.set_offline(False)
    person.does("again")
    assert person.hears(4)[3] == "Reply 5 to typed without a net."
    excused(person)


def test_a_busy_server_is_asked_again(person, scripted):
    person.says("busy")
    person.page.wait_for_selector("text=Too many are asking at once. Trying again in 1 s.")
    assert person.hears(1) == ["Reply 2 to busy."] and len(scripted.asked) == 2
    excused(person)


def test_a_key_is_asked_for_and_kept_as_told(browser, scripted, address):
    scripted.wants_key, scripted.states, scripted.modes = True, None, []
    person = Person(browser, address)
    wrong = person.page.locator("#key-wrong")
    assert not wrong.is_visible()  # none was given yet
    for typed, told in (("wrong", "does not know this API key"), ("密钥", "is of ASCII letters")):
        person.page.fill("#key-field", typed)
        person.page.keyboard.press("Enter")
        person.page.wait_for_selector(f"#key[open] #key-wrong:has-text('{told}')")
        assert person.page.get_attribute("#key-field", "aria-invalid") == "true"
    person.page.keyboard.press("Escape")
    person.says("hello")
    person.page.wait_for_selector("#key[open]")
    assert "is of ASCII letters" in person.page.inner_text("article.assistant .note")
    person.page.fill("#key-field", KEY)
    person.page.click("#key-save")
    person.until("document.getElementById('model').innerText === 'scripted'")
    assert KEY not in person.page.evaluate("JSON.stringify(localStorage)")
    assert person.page.locator("#fields select").count() == 0  # the server has none to choose from
    assert person.hears(1) == ["Reply 1 to hello."]  # it is asked again
    person.page.click("#api-key")
    assert not wrong.is_visible() and person.page.get_attribute("#key-field", "aria-invalid") == "false"
    excused(person)
    assert person.complaints == []
    person.context.close()


def test_in_chinese_on_a_phone(browser, scripted, address):
    phone = {"width": 390, "height": 780}
    person = Person(browser, address, locale="zh-CN", viewport=phone, has_touch=True, is_mobile=True)
    assert person.page.get_attribute("html", "lang") == "zh-CN"
    assert person.page.get_attribute("#message", "placeholder") == "输入消息"
    person.says("宽" * 300 + " " + "w" * 300)
    person.hears(1)
    assert person.page.evaluate("document.documentElement.scrollWidth") == phone["width"]
    edit = person.page.locator('article.user [data-do="edit"]')
    height = edit.locator("xpath=ancestor::footer").bounding_box()["height"]
    person.page.tap("article.user .text")  # which brings up its buttons
    assert height < 2 < edit.bounding_box()["height"]
    person.page.tap("#list-button")
    person.until("document.activeElement.id === 'list-close'")
    assert person.page.evaluate("document.getElementById('main').inert")
    person.page.tap("#language")
    assert person.page.inner_text("#new-chat") == "New conversation"
    person.page.tap("#new-chat")
    assert person.page.get_attribute("body", "data-list") == "closed"
    person.page.reload()
    person.ready()
    assert person.page.get_attribute("html", "lang") == "en"
    assert person.complaints == []
    person.context.close()


def test_by_keyboard_alone_and_every_control_has_a_name(person):
    keys = person.page.keyboard
    keys.type("first")
    keys.press("Shift+Enter")
    keys.type("second line")
    keys.press("Enter")
    person.hears(1)
    assert person.messages()[0] == "first\nsecond line"
    keys.press("ArrowUp")  # edits the last message
    keys.press("Control+a")
    keys.type("better")
    keys.press("Enter")
    person.until("document.querySelector('article.user .text').innerText === 'better'")
    person.hears(1)
    assert person.focused() == "message"
    keys.press("Alt+n")
    keys.type("new")
    keys.press("Enter")
    person.hears(1)
    keys.press("Control+k")
    keys.type("better")
    keys.press("Enter")
    assert person.messages()[0] == "better"
    person.page.click("#settings-button")
    person.does("edit", 0)
    assert person.page.evaluate(NAMELESS) == []
    keys.press("Escape")
    assert person.page.evaluate("document.activeElement.dataset.do") == "edit"


def test_colours_follow_the_system_or_the_user(person):
    def paper():
        return person.page.evaluate("getComputedStyle(document.body).backgroundColor")

    day = paper()
    person.page.emulate_media(color_scheme="dark")
    night = paper()
    assert day != night
    person.page.click("#theme")
    assert paper() == day and person.page.get_attribute("#theme", "aria-label") == "Colours: Light"


@pytest.mark.on("jax")
def test_with_the_server_itself(browser):
    """The text in the page is what the model writes alone. Without a key there is the page, and under no other name."""
    rwkv = endless()
    scheduler = Scheduler(rwkv, max_batch=2, queue=6)
    scheduler.start()
    access = Access([KEY], LOCAL_NAMES)
    with served(make_app(Service("talker", scheduler, template_of("g1"), rwkv.config.vocab_size, access))) as address:
        person = Person(browser, address)
        assert person.page.request.get(address, headers={"Host": "evil.example"}).status == 403
        person.page.fill("#key-field", KEY)
        person.page.click("#key-save")
        person.until("document.getElementById('model').innerText === 'talker'")
        person.page.click("#settings-button")
        settings = {
            "temperature": 0,
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "penalty_decay": 1,
            "max_tokens": 12,
        }
        for name, value in settings.items():
            person.page.fill(f"#set-{name}", str(value))
        person.says("What is a hacker?")
        person.hears(1)
        prompt = "User: What is a hacker?\n\nAssistant:"
        asked = {
            "max_new_tokens": 12,
            "sampling": "greedy",
            "strip_prompt": True,
            "stop_texts": template_of("g1").stop_texts,
        }
        text = rwkv.generate(prompt, **asked)
        person.does("edit", -1)
        assert person.page.input_value(".editor textarea").split() == text.split()
        excused(person)
        assert person.complaints == []
        person.context.close()
