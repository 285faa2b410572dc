// The editor of Prompt List: bad rows are marked in the text, and told below it.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const NODE = "TiUEPromptList";
const QUIET = 300; // ms without a keystroke before the list is checked
const LINE = 18; // px
const SIZE = [420, 680]; // px, of a new node

const STYLE = `
.tiue-list { box-sizing: border-box; overflow-y: auto; font: 12px sans-serif; padding: 2px 4px;
    color: var(--input-text, #ddd); }
.tiue-list output { display: block; opacity: .8; }
.tiue-list button { display: block; width: 100%; text-align: left; font: inherit; cursor: pointer;
    color: #ff9d9d; background: none; border: 0; padding: 2px 0; }
.tiue-list button:hover { text-decoration: underline; }`;

class Editor {
    #timer = 0;
    #asked = 0;
    #told = 0; // runs that told what they made

    constructor(node) {
        this.node = node;
        this.element = document.createElement("div");
        this.element.className = "tiue-list";
        this.summary = document.createElement("output"); // of the text as it is
        this.status = document.createElement("output"); // of the last run
        this.rows = document.createElement("div");
        this.element.append(this.status, this.summary, this.rows);
    }

    value(name) {
        return this.node.widgets?.find((widget) => widget.name === name)?.value;
    }

    get area() {
        const widget = this.node.widgets?.find((widget) => widget.name === "text");
        return widget?.element ?? widget?.inputEl;
    }

    /** Lines stay lines, so that a mark is where its row is. */
    dress() {
        const area = this.area;
        if (!area || area.dataset.tiue) return;
        area.dataset.tiue = "list";
        Object.assign(area.style, { whiteSpace: "pre", overflowX: "auto", lineHeight: `${LINE}px` });
        area.addEventListener("input", () => this.touch());
    }

    touch() {
        clearTimeout(this.#timer);
        const told = this.#told;
        this.#timer = setTimeout(() => this.check(told), QUIET);
    }

    /** Mark bad rows; where a run has told something meanwhile, its words stay. */
    async check(told = this.#told) {
        this.dress();
        const asked = ++this.#asked;
        const text = String(this.value("text") ?? "");
        const fromFile = this.value("file") !== "(the text below)";
        if (fromFile) return this.show([], `the list is ${this.value("file")}`);
        try {
            const answer = await api.fetchApi("/tiue/check_list", {
                method: "POST",
                headers: { "Content-Type": "application/json" },
                body: JSON.stringify({
                    text,
                    kind: this.value("kind"),
                    combinations: this.value("combinations"),
                }),
            });
            const { error, bad, pictures, more } = await answer.json();
            if (error) throw new Error(error);
            if (asked !== this.#asked) return; // a later text was asked about meanwhile
            const counted = `${pictures}${more ? "+" : ""} pictures${bad.length ? `, ${bad.length} bad rows` : ""}`;
            this.show(bad, told === this.#told ? counted : this.summary.textContent);
        } catch (error) {
            this.show([], `not checked: ${String(error?.message ?? error).split("\n")[0]}`);
        }
    }

    /** What the last run made of the list. */
    ran(status) {
        this.#told += 1;
        const { there, now, waiting, bad } = status;
        const parts = [`${there} there before`, `${now} painted in this run`];
        if (waiting) parts.push(`${waiting} waiting: queue again`);
        if (bad.length) parts.push(`${bad.length} bad rows`);
        this.status.textContent = parts.join(", ");
    }

    show(bad, summary) {
        this.summary.textContent = summary;
        this.rows.replaceChildren(...bad.map((row) => this.#problem(row)));
        this.#mark(bad.map((row) => row.line));
    }

    #problem({ line, column, message }) {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = `line ${line}${column ? `, ${column}` : ""}: ${message}`;
        button.title = button.textContent;
        button.addEventListener("click", () => this.#select(line));
        return button;
    }

    #mark(lines) {
        const area = this.area;
        if (!area) return;
        const top = parseFloat(getComputedStyle(area).paddingTop) || 0;
        const places = [...new Set(lines)];
        Object.assign(area.style, {
            backgroundImage: places.map(() => "linear-gradient(#b0303066, #b0303066)").join(", "),
            backgroundSize: `100% ${LINE}px`,
            backgroundRepeat: "no-repeat",
            backgroundAttachment: "local", // the marks scroll with their lines
            backgroundPosition: places.map((line) => `0 ${top + (line - 1) * LINE}px`).join(", "),
        });
        area.dataset.badLines = places.join(",");
    }

    #select(line) {
        const area = this.area;
        if (!area) return;
        const before = area.value.split("\n").slice(0, line - 1);
        const start = before.reduce((sum, text) => sum + text.length + 1, 0);
        const end = area.value.indexOf("\n", start);
        area.focus();
        area.setSelectionRange(start, end < 0 ? area.value.length : end);
        area.scrollTop = Math.max(0, (line - 3) * LINE);
    }
}

app.registerExtension({
    name: "TiUE.PromptList",

    setup() {
        const style = document.createElement("style");
        style.textContent = STYLE;
        document.head.append(style);
    },

    nodeCreated(node) {
        if (node.comfyClass !== NODE) return;
        const editor = new Editor(node);
        const widget = node.addDOMWidget("tiue_problems", "tiue-list", editor.element, {
            serialize: false,
            hideOnZoom: false,
            getMinHeight: () => 60,
            getMaxHeight: () => 140,
        });
        widget.serialize = false;
        const [wide, high] = node.size;
        node.setSize([Math.max(wide, SIZE[0]), Math.max(high, SIZE[1])]); // room for the text
        for (const name of ["text", "file", "kind", "combinations"]) {
            const watched = node.widgets?.find((one) => one.name === name);
            if (!watched) continue;
            const callback = watched.callback;
            watched.callback = function (...rest) {
                callback?.apply(this, rest);
                editor.touch();
            };
        }
        after(node, "onConfigure", () => editor.touch());
        after(node, "onExecuted", (output) => {
            if (output?.tiue_list?.[0]) editor.ran(JSON.parse(output.tiue_list[0]));
        });
        editor.touch();
    },
});

function after(node, name, then) {
    const before = node[name];
    node[name] = function (...rest) {
        const result = before?.apply(this, rest);
        then(...rest);
        return result;
    };
}
