// CLIP's tokenizer out of a student's tokenizer.json: byte-pair encoding of lower-case words.

const WORDS = /'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+/gu;
const END = "</w>"; // marks the last unit of a word

export class Tokenizer {
    #vocab;
    #ranks;
    #special;
    #known = new Map(); // word -> ids: a prompt that is being typed repeats all but its last word

    /** @param {object} json  the contents of a tokenizer.json, with padding set */
    constructor(json) {
        this.#vocab = new Map(Object.entries(json.model.vocab));
        const pairs = json.model.merges.map((pair) => (Array.isArray(pair) ? pair.join(" ") : pair));
        this.#ranks = new Map(pairs.map((pair, rank) => [pair, rank]));
        this.#special = new Map(json.added_tokens.map((token) => [token.content, token.id]));
        this.unknown = this.#vocab.get(json.model.unk_token);
        this.first = json.post_processor.cls[1];
        this.last = json.post_processor.sep[1];
        this.padding = json.padding.pad_id;
        this.length = json.padding.strategy.Fixed;
    }

    /** Text to `length` ids, and whether words had to be dropped. */
    encode(text) {
        const ids = [];
        for (const part of this.#parts(text.split(/\s+/).filter(Boolean).join(" "))) {
            if (this.#special.has(part)) ids.push(this.#special.get(part));
            else for (const word of words(part)) ids.push(...this.#word(word));
        }
        const room = this.length - 2;
        const dropped = ids.length > room;
        const all = [this.first, ...ids.slice(0, room), this.last];
        while (all.length < this.length) all.push(this.padding);
        return { ids: all, dropped };
    }

    /** The text cut at special tokens, which stand for themselves. */
    #parts(text) {
        const names = [...this.#special.keys()];
        const escaped = names.map((name) => name.replace(/[^\w<>]/g, "\\$&"));
        return escaped.length ? text.split(new RegExp(`(${escaped.join("|")})`)) : [text];
    }

    #word(word) {
        if (!this.#known.has(word)) this.#known.set(word, this.#merged(word));
        return this.#known.get(word);
    }

    #merged(word) {
        let units = Array.from(new TextEncoder().encode(word), (byte) => LETTERS[byte]);
        units[units.length - 1] += END;
        for (;;) {
            let best = Infinity, at = -1;
            for (let i = 0; i + 1 < units.length; i++) {
                const rank = this.#ranks.get(`${units[i]} ${units[i + 1]}`) ?? Infinity;
                if (rank < best) [best, at] = [rank, i];
            }
            if (at < 0) break;
            units = [...units.slice(0, at), units[at] + units[at + 1], ...units.slice(at + 2)];
        }
        return units.map((unit) => this.#vocab.get(unit) ?? this.unknown);
    }
}

function words(text) {
    // Letter by letter, as the tokenizers library does: a final sigma stays a plain one.
    const lower = Array.from(text.normalize("NFC"), (letter) => letter.toLowerCase()).join("");
    return lower.match(WORDS) ?? [];
}

/** A printable letter for each byte: itself where it is printable, else the next one from 256. */
const LETTERS = (() => {
    const letters = [];
    let next = 256;
    for (let byte = 0; byte < 256; byte++) {
        const printable = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
        letters.push(String.fromCodePoint(printable ? byte : next++));
    }
    return letters;
})();
