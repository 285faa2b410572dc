// The page: words and a seed in, a picture while you type, variations when you pause.

import { encodePng } from "./png.mjs";

const VARIATIONS = 6;
const SIMD = Uint8Array.of(
    0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253,
    15, 253, 98, 11,
); // a module of one vector instruction

const [prompt, seed, dice, save, canvas, bar, status, variations, about] =
    ["prompt", "seed", "dice", "save", "picture", "bar", "status", "variations", "about"].map(
        (id) => document.getElementById(id),
    );

let worker, student, shown;
let busy = false; // one picture at a time; what comes meanwhile waits, and only the last of it
const queue = { main: null, others: [] };

function ask() {
    const typed = seed.value.trim();
    const wrong = !/^\d{1,15}$/.test(typed);
    seed.setAttribute("aria-invalid", wrong);
    queue.main = wrong ? null : { prompt: prompt.value, seed: Number(typed) };
    queue.others = [];
    if (wrong) return fail("The seed is a whole number of up to 15 digits.");
    next();
}

function next() {
    if (busy || !student) return;
    const job = queue.main ?? queue.others.shift();
    if (!job) return;
    if (job === queue.main) queue.main = null;
    busy = job;
    worker.postMessage({ id: job.id ?? 0, prompt: job.prompt, seed: job.seed });
}

function painted({ id, pixels, width, height, dropped, ms }) {
    const job = busy;
    busy = false;
    if (id === 0) {
        shown = { ...job, pixels, width, height };
        draw(canvas, shown);
        Object.assign(canvas.dataset, { prompt: job.prompt, seed: job.seed, ms: ms.toFixed(0) });
        canvas.setAttribute("aria-label", job.prompt || "a picture without words");
        save.disabled = false;
        if (seed.getAttribute("aria-invalid") !== "true") tell(ms, dropped);
        if (!queue.main) queue.others = neighbours(job);
    } else if (!queue.main) {
        draw(variations.children[id - 1].firstElementChild, { ...job, pixels, width, height });
    }
    next();
}

function tell(ms, dropped) {
    const speed = `${ms.toFixed(0)} ms`;
    status.classList.remove("error");
    status.textContent = dropped ? `${speed}; the last words did not fit and were dropped` : speed;
}

function neighbours({ prompt, seed }) {
    return Array.from({ length: VARIATIONS }, (_, i) => {
        const own = seed + i + 1;
        const button = variations.children[i];
        button.dataset.seed = own;
        button.setAttribute("aria-label", `Variation, seed ${own}`);
        return { id: i + 1, prompt, seed: own };
    });
}

function draw(surface, { pixels, width, height }) {
    surface.width = width;
    surface.height = height;
    surface.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
}

async function saved() {
    const { pixels, width, height, prompt, seed } = shown;
    const record = Object.fromEntries(
        ["student", "student_revision", "student_hash", "steps", "decoders", "timesteps", "loras"]
            .map((name) => [name, student.about[name]]),
    );
    const words = prompt.split(/\s+/).filter(Boolean).join(" ");
    if (student.about.draft) record.draft = true;
    const more = { dtype: student.about.dtype, device: student.device, version: student.tiue };
    const made = { ...record, ...more, prompt: words, seed, width, height };
    const bytes = await encodePng(pixels, width, height, made);
    const link = document.createElement("a");
    const slug = words.toLowerCase().match(/[\p{L}\p{N}]+/gu)?.join("-").slice(0, 60) || "image";
    link.href = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
    link.download = `${slug}_${seed}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function fail(message) {
    bar.hidden = true;
    status.textContent = message;
    status.classList.add("error");
}

function ready(info) {
    student = info;
    bar.hidden = true;
    const { about: made, device, threads } = info;
    const count = threads === 1 ? "one thread" : `${threads} threads`;
    const where = device === "webgpu" ? "WebGPU" : `WebAssembly, ${count}`;
    about.textContent = `${made.student}: ${made.timesteps.length} decoders, one pass, `
        + `${made.width} × ${made.height}, in this browser (${where}). Licence: ${made.licence}`;
    document.body.dataset.ready = device;
    ask();
}

function heard({ data }) {
    if (data.error) {
        if (!student) worker.terminate(); // else what still loads would be told over this
        busy = false; // the next words may do
        return fail(data.error);
    }
    if (data.ready) return ready(data.ready);
    if (data.total) {
        bar.max = data.total;
        bar.value = data.progress;
        const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
        const done = data.progress >= data.total;
        status.textContent = done
            ? "starting …"
            : `loading ${megabytes(data.progress)} of ${megabytes(data.total)} MB`;
        return;
    }
    painted(data);
    keep();
}

/** Once there is a picture, see to it that the next visit needs no network. */
function keep() {
    if (keep.done || !navigator.serviceWorker) return;
    keep.done = true;
    navigator.serviceWorker.register(`sw.mjs?v=${student.version}`).catch(() => {});
}

function begin() {
    for (let i = 0; i < VARIATIONS; i++) {
        const button = document.createElement("button");
        button.type = "button";
        button.append(document.createElement("canvas"));
        button.addEventListener("click", () => {
            if (!button.dataset.seed) return;
            seed.value = button.dataset.seed;
            ask();
        });
        variations.append(button);
    }
    prompt.addEventListener("input", ask);
    seed.addEventListener("input", ask);
    dice.addEventListener("click", () => {
        seed.value = String(crypto.getRandomValues(new Uint32Array(1))[0]);
        ask();
    });
    save.addEventListener("click", saved);
    document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());

    if (typeof WebAssembly !== "object" || !WebAssembly.validate(SIMD)) {
        return fail(
            "This browser lacks WebAssembly SIMD: use Chrome 91, Firefox 89, Safari 16.4 or newer.",
        );
    }
    worker = new Worker("worker.mjs", { type: "module" });
    worker.onmessage = heard;
    worker.onerror = (event) => fail(event.message || "The painter could not start: reload the page.");
}

begin();
