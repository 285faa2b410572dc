// Live mode without a page: node --test
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import test from "node:test";

const source = await readFile(new URL("../../web/js/live.js", import.meta.url), "utf8");
const { Live } = await import(`data:text/javascript,${encodeURIComponent(source)}`);
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const QUIET = 400; // longer than live mode waits, also on a slow machine

function made() {
    const seen = { text: "", queued: [], reports: [] };
    seen.live = new Live({
        graph: async () => ({ output: { text: seen.text } }),
        queue: async ({ output }) => `p${seen.queued.push(output.text) - 1}`,
        report: (text) => seen.reports.push(text),
    });
    seen.type = (text) => {
        seen.text = text;
        seen.live.touch();
    };
    return seen;
}

test("off by default", async () => {
    const seen = made();
    seen.type("a cat");
    await sleep(QUIET);
    assert.deepEqual(seen.queued, []);
});

test("switched on, it runs what is there", async () => {
    const seen = made();
    seen.text = "a cat";
    seen.live.toggle(true);
    await sleep(QUIET);
    assert.deepEqual(seen.queued, ["a cat"]);
});

test("one run at a time, and the last text wins", async () => {
    const seen = made();
    seen.live.toggle(true);
    await sleep(QUIET);
    for (const text of ["a", "a d", "a do", "a dog"]) {
        seen.type(text);
        await sleep(QUIET);
    }
    assert.deepEqual(seen.queued, [""]);
    seen.live.finished("someone else's", "success");
    await sleep(QUIET);
    assert.deepEqual(seen.queued, [""]);
    seen.live.finished("p0", "success");
    await sleep(QUIET);
    assert.deepEqual(seen.queued, ["", "a dog"]);
});

test("a prompt may end before its id is known", async () => {
    const seen = made();
    const queue = seen.live.queue;
    seen.live.queue = async (prompt) => {
        const id = await queue(prompt);
        seen.live.finished(id, "success");
        return id;
    };
    seen.live.toggle(true);
    await sleep(QUIET);
    seen.type("a cat");
    await sleep(QUIET);
    assert.deepEqual(seen.queued, ["", "a cat"]);
});

test("an unchanged graph is not run again", async () => {
    const seen = made();
    seen.live.toggle(true);
    await sleep(QUIET);
    seen.live.finished("p0", "success");
    assert.match(seen.reports.at(-1), /^\d+\.\d\d s$/);
    seen.live.touch();
    await sleep(QUIET);
    assert.deepEqual(seen.queued, [""]);
});

test("an error does not stop it", async () => {
    const seen = made();
    const queue = seen.live.queue;
    seen.live.queue = async () => {
        throw new Error("no output\nand more");
    };
    seen.live.toggle(true);
    await sleep(QUIET);
    assert.equal(seen.reports.at(-1), "not run: no output");
    seen.live.queue = queue;
    seen.type("a cat");
    await sleep(QUIET);
    assert.deepEqual(seen.queued, ["a cat"]);
});

test("switched off, nothing that waits is run", async () => {
    const seen = made();
    seen.live.toggle(true);
    await sleep(QUIET);
    seen.type("a cat");
    await sleep(QUIET);
    seen.live.toggle(false);
    seen.live.finished("p0", "success");
    await sleep(QUIET);
    assert.deepEqual(seen.queued, [""]);
});
