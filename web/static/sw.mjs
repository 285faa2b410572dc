// Works offline after the first visit: small files from the network while there is one, large ones
// (which carry their version in the address) from the cache once they are there.
//
// All answers get the two headers that let a page use threads, so those need no server's help.

const VERSION = new URL(self.location).searchParams.get("v");
const CACHE = `tiue-${VERSION}`;
const ISOLATED = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
};

self.addEventListener("install", (event) => event.waitUntil(install()));
self.addEventListener("activate", (event) => event.waitUntil(activate()));
self.addEventListener("fetch", (event) => {
    const { url, method } = event.request;
    if (method === "GET" && url.startsWith(self.registration.scope)) {
        event.respondWith(answer(event.request));
    }
});

async function install() {
    const cache = await caches.open(CACHE);
    const { files, large } = await (await fetch("student.json", { cache: "no-cache" })).json();
    const wanted = files.map((name) => (large.includes(name) ? `${name}?v=${VERSION}` : name));
    for (const url of ["./", ...wanted]) {
        if (!(await cache.match(url))) await cache.add(url); // the painter may have put it there
    }
    await self.skipWaiting();
}

async function activate() {
    for (const name of await caches.keys()) {
        if (name.startsWith("tiue-") && name !== CACHE) await caches.delete(name);
    }
    await self.clients.claim();
}

async function answer(request) {
    const cache = await caches.open(CACHE);
    const versioned = new URL(request.url).searchParams.has("v");
    if (versioned) {
        const known = await cache.match(request);
        if (known) return isolated(known);
    }
    try {
        const response = await fetch(request);
        if (response.ok && !versioned) await cache.put(request, response.clone());
        return isolated(response);
    } catch (error) {
        const known = await cache.match(request, { ignoreSearch: !versioned });
        if (known) return isolated(known);
        throw error;
    }
}

function isolated(response) {
    if (!response.ok) return response;
    const headers = new Headers(response.headers);
    for (const [name, value] of Object.entries(ISOLATED)) headers.set(name, value);
    return new Response(response.body, { status: response.status, headers });
}
