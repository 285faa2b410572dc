// The painter: one graph in onnxruntime, away from the page's thread so that typing never waits.
//
// in   {id, prompt, seed}
// out  {progress, total} | {ready: {...}} | {id, pixels, width, height, dropped, ms} | {error, id?}

import { normal } from "./noise.mjs";
import { Tokenizer } from "./tokenizer.mjs";

const FORMAT = 1; // of the student's description, as in tiue_core/export/metadata.py
let painter;
const say = (message, transfer) => self.postMessage(message, transfer);

self.onmessage = async ({ data: { id, prompt, seed } }) => {
    try {
        const picture = await painter.paint(prompt, seed);
        say({ id, ...picture }, [picture.pixels.buffer]);
    } catch (error) {
        say({ id, error: String(error.message ?? error) });
    }
};

class Painter {
    constructor(ort, session, about, tokenizer) {
        Object.assign(this, { ort, session, about, tokenizer });
    }

    async paint(prompt, seed) {
        const started = performance.now();
        const { about, ort } = this;
        const { ids, dropped } = this.tokenizer.encode(prompt);
        const sides = [about.height / about.factor, about.width / about.factor];
        const noise = normal(seed, about.channels * sides[0] * sides[1]);
        const tokens = BigInt64Array.from(ids, BigInt);
        const { image } = await this.session.run(
            {
                input_ids: new ort.Tensor("int64", tokens, [1, ids.length]),
                noise: new ort.Tensor("float32", noise, [1, about.channels, ...sides]),
            },
            ["image"],
        );
        const pixels = rgba(await image.getData());
        image.dispose();
        const ms = performance.now() - started;
        return { pixels, width: about.width, height: about.height, dropped, ms };
    }
}

/** (3, H, W) in [0, 1] to what a canvas takes. */
function rgba(planes) {
    const area = planes.length / 3;
    const out = new Uint8ClampedArray(4 * area).fill(255);
    for (let c = 0; c < 3; c++) {
        for (let i = 0; i < area; i++) out[4 * i + c] = 255 * planes[c * area + i]; // rounds to even
    }
    return out;
}

async function start() {
    const site = await (await fetched("student.json")).json();
    if (site.about.format !== FORMAT) {
        throw new Error(
            `The student has format ${site.about.format} and this page reads ${FORMAT}: `
            + "write the page again with tiue app --static.",
        );
    }
    const device = site.webgpu && (await hasWebGpu()) ? "webgpu" : "wasm";
    const runtime = site.runtimes[device];
    const threads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, 4) : 1;

    let done = 0;
    const total = site.sizes[site.graph] + site.sizes[runtime.wasm];
    const advance = (bytes) => say({ progress: (done += bytes), total });
    const [graph, wasm, ort] = await Promise.all([
        kept(site.graph, site.version, advance),
        kept(runtime.wasm, site.version, advance),
        import(`./${runtime.module}`),
    ]);
    ort.env.wasm.wasmBinary = wasm;
    ort.env.wasm.wasmPaths = { mjs: new URL(runtime.glue, self.location).href };
    ort.env.wasm.numThreads = threads;
    const session = await ort.InferenceSession.create(graph, {
        executionProviders: device === "webgpu" ? ["webgpu", "wasm"] : ["wasm"],
        graphOptimizationLevel: "all",
    });
    painter = new Painter(ort, session, site.about, new Tokenizer(site.tokenizer));
    say({ ready: { about: site.about, version: site.version, tiue: site.tiue, device, threads } });
}

/** A large file: from the cache, or from the server and then into the cache. */
async function kept(name, version, advance) {
    const url = `${name}?v=${version}`;
    const cache = self.caches && (await caches.open(`tiue-${version}`).catch(() => null));
    const known = await cache?.match(url);
    const response = known ?? (await fetched(url));
    const parts = [];
    for (const reader = response.body.getReader(); ; ) {
        const { done, value } = await reader.read();
        if (done) break;
        parts.push(value);
        advance(value.length);
    }
    const blob = new Blob(parts, { type: response.headers.get("content-type") ?? "" });
    if (cache && !known) await cache.put(url, new Response(blob)).catch(() => {}); // a full disk
    return new Uint8Array(await blob.arrayBuffer());
}

async function fetched(url) {
    const response = await fetch(url).catch(() => null);
    if (response?.ok) return response;
    throw new Error(`${url.split("?")[0]} cannot be loaded: check the connection and reload`);
}

async function hasWebGpu() {
    if (!navigator.gpu || !("Suspending" in WebAssembly)) return false;
    return Boolean(await navigator.gpu.requestAdapter().catch(() => null));
}

start().catch((error) => say({ error: String(error.message ?? error) }));
