// A PNG with what is needed to make it again, in the two text chunks of tiue_core/io/images.py.
//
// Made from the pixels themselves: what a canvas gives back is blurred on purpose by some browsers.

/** @param {Uint8ClampedArray} rgba  @returns {Promise<Uint8Array>} */
export async function encodePng(rgba, width, height, metadata) {
    const rows = new Uint8Array(height * (1 + 3 * width)); // each row begins with its filter, none
    for (let y = 0, at = 0, from = 0; y < height; y++) {
        at++;
        for (let x = 0; x < width; x++, from += 4) {
            rows.set(rgba.subarray(from, from + 3), at);
            at += 3;
        }
    }
    const header = new DataView(new ArrayBuffer(13));
    header.setUint32(0, width);
    header.setUint32(4, height);
    header.setUint8(8, 8); // bits
    header.setUint8(9, 2); // RGB
    const deflated = new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"));
    return joined([
        Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a),
        chunk("IHDR", new Uint8Array(header.buffer)),
        text("parameters", parameters(metadata)),
        text("tiue", ascii(JSON.stringify(metadata))),
        chunk("IDAT", new Uint8Array(await new Response(deflated).arrayBuffer())),
        chunk("IEND", new Uint8Array()),
    ]);
}

/** The line-and-pairs format that galleries read. */
function parameters(made) {
    const loras = made.loras ?? [];
    const words = [made.prompt, ...loras.map((lora) => `<lora:${lora.name}:${lora.strength}>`)];
    const quoted = (value) => (/[,:"\n]/.test(value) ? JSON.stringify(value) : value);
    const hashes = loras.map((lora) => `${lora.name}: ${lora.hash.slice(0, 12)}`).join(", ");
    const pairs = {
        Steps: made.timesteps.length,
        Sampler: "TiUE",
        "CFG scale": 1,
        Seed: made.seed,
        Size: `${made.width}x${made.height}`,
        "Model hash": (made.student_hash ?? "").slice(0, 10),
        Model: quoted(made.student ?? ""),
        "Lora hashes": hashes && JSON.stringify(hashes),
        Version: `TiUE ${made.version}`,
    };
    const line = Object.entries(pairs).filter(([, value]) => value !== "");
    return `${words.join(" ").trim()}\n${line.map((pair) => pair.join(": ")).join(", ")}`;
}

/** A text chunk: tEXt, or where Latin-1 does not do, iTXt. */
function text(keyword, content) {
    const name = latin(keyword);
    if (/^[\x00-\xff]*$/.test(content)) {
        return chunk("tEXt", joined([name, Uint8Array.of(0), latin(content)]));
    }
    const utf8 = new TextEncoder().encode(content);
    return chunk("iTXt", joined([name, Uint8Array.of(0, 0, 0, 0, 0), utf8]));
}

function chunk(name, data) {
    const body = joined([latin(name), data]);
    const length = new DataView(new ArrayBuffer(4)), check = new DataView(new ArrayBuffer(4));
    length.setUint32(0, data.length);
    check.setUint32(0, crc(body));
    return joined([new Uint8Array(length.buffer), body, new Uint8Array(check.buffer)]);
}

function crc(bytes) {
    let value = ~0;
    for (const byte of bytes) {
        value ^= byte;
        for (let bit = 0; bit < 8; bit++) value = (value >>> 1) ^ (value & 1 ? 0xedb88320 : 0);
    }
    return ~value >>> 0;
}

function latin(string) {
    return Uint8Array.from(string, (letter) => letter.charCodeAt(0));
}

function ascii(json) {
    const escape = (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`;
    return json.replace(/[^\x00-\x7f]/g, escape);
}

function joined(parts) {
    const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of parts) {
        out.set(part, at);
        at += part.length;
    }
    return out;
}
