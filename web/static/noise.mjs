// torch's normal noise: the same seed, the same noise, as in tiue_core/export/noise.py.
//
// torch.randn on a CPU, from 16 numbers on, is Mersenne Twister and Box-Muller in blocks of 8 + 8.
// Roots and angles are rounded to float32 where torch rounds them.

const BLOCK = 16;
const { fround, log, sqrt, cos, sin } = Math;
const TWO_PI = fround(2 * Math.PI);

/** N(0, 1) noise, `count` numbers from 16 on, of a seed (a BigInt or what makes one). */
export function normal(seed, count) {
    if (count < BLOCK) throw new Error(`noise of ${count} numbers: give ${BLOCK} or more`);
    const next = twister(Number(BigInt(seed) & 0xffffffffn));
    const uniform = () => (next() & 0xffffff) * 2 ** -24; // exact in float32
    const out = new Float32Array(count);
    for (let i = 0; i < count; i++) out[i] = uniform();
    for (let i = 0; i + BLOCK <= count; i += BLOCK) boxMuller(out.subarray(i, i + BLOCK));
    if (count % BLOCK) {
        const last = out.subarray(count - BLOCK);
        for (let i = 0; i < BLOCK; i++) last[i] = uniform();
        boxMuller(last);
    }
    return out;
}

/** 8 + 8 uniform numbers to 8 + 8 normal ones, in place. */
function boxMuller(block) {
    for (let j = 0; j < 8; j++) {
        const radius = fround(sqrt(fround(-2 * fround(log(fround(1 - block[j]))))));
        const angle = fround(TWO_PI * block[j + 8]);
        block[j] = radius * fround(cos(angle)); // storing rounds the product
        block[j + 8] = radius * fround(sin(angle));
    }
}

/** MT19937: a function that gives 32 bits a call. */
function twister(seed) {
    const N = 624, M = 397;
    const state = new Uint32Array(N);
    state[0] = seed;
    for (let i = 1; i < N; i++) {
        const before = state[i - 1] ^ (state[i - 1] >>> 30);
        state[i] = Math.imul(1812433253, before) + i;
    }
    let at = N;
    return () => {
        if (at === N) {
            for (let i = 0; i < N; i++) {
                const bits = (state[i] & 0x80000000) | (state[(i + 1) % N] & 0x7fffffff);
                state[i] = state[(i + M) % N] ^ (bits >>> 1) ^ (bits & 1 ? 0x9908b0df : 0);
            }
            at = 0;
        }
        let y = state[at++];
        y ^= y >>> 11;
        y ^= (y << 7) & 0x9d2c5680;
        y ^= (y << 15) & 0xefc60000;
        return (y ^ (y >>> 18)) >>> 0;
    };
}
