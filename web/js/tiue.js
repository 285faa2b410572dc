// A strip at the foot of One-Pass Sampler: live mode with its latency, seed pin and copy.
// DOM only, so that it looks the same in both of ComfyUI's node renderers.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { Live } from "./live.js";

const SAMPLER = "TiUEOnePassSampler";
const strips = new Set(); // of all samplers: live mode is the graph's, every strip shows it

const live = new Live({
    graph: () => app.graphToPrompt(),
    queue: async (prompt) => (await api.queuePrompt(0, prompt)).prompt_id,
    report: (text) => strips.forEach((strip) => strip.show(text)),
});

const STYLE = `
.tiue-strip { display: flex; gap: 6px; align-items: center; font: 12px sans-serif; padding: 2px 0;
    color: var(--input-text, #ddd); }
.tiue-strip button { font: inherit; color: inherit; cursor: pointer; padding: 2px 8px;
    background: var(--comfy-input-bg, #222); border: 1px solid var(--border-color, #4e4e4e);
    border-radius: 6px; white-space: nowrap; }
.tiue-strip button[aria-pressed="true"] { background: #2d6a4f; color: #fff; }
.tiue-strip output { flex: 1; min-width: 0; overflow: hidden; text-overflow: ellipsis;
    white-space: nowrap; text-align: right; opacity: 0.8; }`;

/** The strip of one sampler node. */
class Strip {
    seed = null; // of the picture that was painted last

    constructor(node) {
        this.node = node;
        this.liveButton = button("Live", "Paint while you type. The last text wins.", () =>
            setLive(!live.on),
        );
        this.pinButton = button("Pin seed", "Keep the seed of this picture.", () => this.pin());
        this.copyButton = button("Copy seed", "Copy the seed of this picture.", () => this.copy());
        this.readout = document.createElement("output");
        this.element = document.createElement("div");
        this.element.className = "tiue-strip";
        this.element.append(this.liveButton, this.pinButton, this.copyButton, this.readout);
        this.refresh();
    }

    widget(name) {
        return this.node.widgets?.find((widget) => widget.name === name);
    }

    get pinned() {
        return this.widget("control_after_generate")?.value === "fixed";
    }

    show(text) {
        this.readout.textContent = this.readout.title = text;
    }

    /** Fix the seed at the one of the picture on screen, or let it roll again. */
    pin(pinned = !this.pinned) {
        const seed = this.widget("seed");
        if (pinned && !this.pinned && seed && this.seed !== null) set(seed, Number(this.seed));
        set(this.widget("control_after_generate"), pinned ? "fixed" : "randomize");
        this.refresh();
        this.node.setDirtyCanvas?.(true, true);
    }

    async copy() {
        const seed = String(this.seed ?? this.widget("seed")?.value ?? "");
        try {
            await navigator.clipboard.writeText(seed);
            this.show(`copied ${seed}`);
        } catch {
            this.show(`seed ${seed}`); // a page without https may not touch the clipboard
        }
    }

    refresh() {
        this.liveButton.setAttribute("aria-pressed", live.on);
        this.pinButton.setAttribute("aria-pressed", this.pinned);
    }
}

/** Live mode pins all seeds: a picture that changes by itself does not follow the typing. */
function setLive(on) {
    if (on) strips.forEach((strip) => strip.pin(true));
    live.toggle(on);
    strips.forEach((strip) => strip.refresh());
}

function set(widget, value) {
    if (!widget) return;
    widget.value = value;
    widget.callback?.(value);
}

function button(label, title, onclick) {
    const element = document.createElement("button");
    Object.assign(element, { type: "button", textContent: label, title, onclick });
    return element;
}

app.registerExtension({
    name: "TiUE.Live",

    setup() {
        const style = document.createElement("style");
        style.textContent = STYLE;
        document.head.append(style);
        // After the widget that owns the text has taken it.
        document.addEventListener("input", ({ target }) => {
            if (target instanceof HTMLTextAreaElement || target instanceof HTMLInputElement)
                live.touch();
        });
        for (const how of ["success", "error", "interrupted"])
            api.addEventListener(`execution_${how}`, ({ detail }) =>
                live.finished(detail.prompt_id, how),
            );
        api.addEventListener("reconnected", () => live.forget());
    },

    nodeCreated(node) {
        if (node.comfyClass !== SAMPLER) return;
        const strip = new Strip(node);
        strips.add(strip);
        const widget = node.addDOMWidget("tiue", "tiue-strip", strip.element, {
            serialize: false,
            hideOnZoom: false,
            getMinHeight: () => 28,
            getMaxHeight: () => 28,
        });
        widget.serialize = false;

        const control = strip.widget("control_after_generate");
        if (control) {
            const callback = control.callback;
            control.callback = function (...rest) {
                callback?.apply(this, rest);
                strip.refresh();
            };
        }
        chain(node, "onExecuted", (output) => {
            strip.seed = output?.seed?.[0] ?? strip.seed;
        });
        chain(node, "onConfigure", () => strip.refresh());
        chain(node, "onRemoved", () => {
            strips.delete(strip);
            if (!strips.size && live.on) live.toggle(false);
        });
    },
});

function chain(node, name, after) {
    const before = node[name];
    node[name] = function (...rest) {
        const result = before?.apply(this, rest);
        after(...rest);
        return result;
    };
}
