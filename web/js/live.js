// Live mode: the picture follows the typing.
//
// One prompt is in flight at a time. What is typed meanwhile waits, and of all that waits only the
// last text is run. A graph that has not changed is not run again: without typing nothing happens.

const QUIET = 120; // ms without a keystroke before a run

export class Live {
    on = false;
    #timer = 0;
    #running = null; // {id, since} of the prompt in flight
    #waiting = false;
    #last = ""; // the graph that ran last

    /**
     * @param {object} face
     * @param {() => Promise<{output: object}>} face.graph  the graph as a prompt, as it is now
     * @param {(prompt: object) => Promise<string>} face.queue  queue it, give its id
     * @param {(text: string) => void} face.report  the readout
     */
    constructor({ graph, queue, report }) {
        this.graph = graph;
        this.queue = queue;
        this.report = report;
    }

    /** Switch it on or off. Switched on, it runs what is there. */
    toggle(on) {
        this.on = on;
        this.#last = "";
        clearTimeout(this.#timer);
        this.report(on ? "type, and the picture follows" : "");
        if (on) this.#run();
    }

    /** Something was typed. */
    touch() {
        if (!this.on) return;
        clearTimeout(this.#timer);
        this.#timer = setTimeout(() => this.#run(), QUIET);
    }

    /** A prompt came to its end: `how` is "success", "error" or "interrupted". */
    finished(id, how) {
        if (!this.#running) return;
        if (this.#running.id === null) this.#running.early.set(id, how);
        if (this.#running.id !== id) return;
        const seconds = (performance.now() - this.#running.since) / 1000;
        this.#running = null;
        if (this.on) this.report(how === "success" ? `${seconds.toFixed(2)} s` : how);
        this.#next();
    }

    /** The connection was lost and is back: whatever was in flight is no longer known. */
    forget() {
        this.#running = null;
        this.#next();
    }

    #next() {
        if (this.on && this.#waiting) this.#run();
        this.#waiting = false;
    }

    async #run() {
        if (!this.on) return;
        if (this.#running) {
            this.#waiting = true;
            return;
        }
        // A quick prompt can end before the answer to its queueing is here: `early` keeps that.
        const flight = { id: null, since: performance.now(), early: new Map() };
        this.#running = flight;
        try {
            const prompt = await this.graph();
            const graph = JSON.stringify(prompt.output);
            if (graph === this.#last) {
                this.#running = null;
                this.#next();
                return;
            }
            this.#last = graph;
            const id = await this.queue(prompt);
            flight.id = id;
            if (flight.early.has(id)) this.finished(id, flight.early.get(id));
        } catch (error) {
            this.#running = null;
            this.report(`not run: ${String(error?.message ?? error).split("\n")[0]}`);
            this.#next();
        }
    }
}
