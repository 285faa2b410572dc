// Live's own part of the page: what the browser keeps, copies, drops and says.
// Runs once, as the script of the component that holds the history; `element` is that component and
// `trigger('select', ...)` hands settings to the server, which checks them like any request.
const KEY = 'tiue-pictures', LIMIT = 60;
const NAMES = ['prompt', 'seed', 'student', 'width', 'height', 'decoders', 'lora', 'strength',
    'negative', 'guidance'];
const grid = element.querySelector('.tiue-grid'), said = element.querySelector('[role=status]');
const keep = element.querySelector('.tiue-keep input');
const picture = () => document.querySelector('#tiue-picture img');
const ask = () => document.querySelector('#tiue-prompt textarea');
let kept = { keep: true, pictures: [] };
try {
    const found = JSON.parse(localStorage.getItem(KEY));
    if (found && Array.isArray(found.pictures)) kept = found;
} catch { /* another program's, or none */ }
localStorage.removeItem('tiue-history');  // of earlier versions

function say(text, quietly = false) {  // quietly: to those who hear the page, not to those who see it
    said.classList.toggle('tiue-heard', quietly);
    said.textContent = text;
}

function store() {
    try { localStorage.setItem(KEY, JSON.stringify(kept)); } catch { say('The history is full.'); }
}

function render() {
    const focused = grid.contains(document.activeElement) ? document.activeElement.title : null;
    keep.checked = kept.keep;
    const entries = [...kept.pictures].sort((a, b) => Number(b.star) - Number(a.star));
    grid.replaceChildren(...entries.map((entry) => {
        const item = document.createElement('li'), take = document.createElement('button');
        const star = document.createElement('button'), image = new Image();
        const { prompt, seed } = entry.settings;
        take.type = star.type = 'button';
        take.title = `Take back: ${prompt}, seed ${seed}`;
        image.alt = take.title;
        if (String(entry.thumb).startsWith('data:image/')) image.src = entry.thumb;
        take.append(image);
        take.onclick = () => { rest.next = picture()?.src; trigger('select', { settings: entry.settings }); };
        star.className = 'tiue-star';
        star.textContent = entry.star ? '★' : '☆';
        star.title = `Favourite: ${prompt}, seed ${seed}`;
        star.ariaPressed = String(Boolean(entry.star));
        star.onclick = () => { entry.star = !entry.star; store(); render(); };
        item.append(take, star);
        return item;
    }));
    if (focused) [...grid.querySelectorAll('button')].find((b) => b.title === focused)?.focus();
}

function add(image, star = false) {
    if (!kept.keep) return;
    const settings = JSON.parse(image.dataset.settings), key = JSON.stringify(settings);
    const old = kept.pictures.find((entry) => JSON.stringify(entry.settings) === key);
    const canvas = document.createElement('canvas');
    const scale = 96 / Math.max(image.naturalWidth, image.naturalHeight, 1);
    canvas.width = Math.max(1, image.naturalWidth * scale);
    canvas.height = Math.max(1, image.naturalHeight * scale);
    canvas.getContext('2d').drawImage(image, 0, 0, canvas.width, canvas.height);
    const entry = { settings, thumb: canvas.toDataURL('image/webp', 0.7), star: star || Boolean(old?.star) };
    kept.pictures = [entry, ...kept.pictures.filter((other) => other !== old)];
    while (kept.pictures.length > LIMIT) {  // the oldest that is no favourite goes
        const last = kept.pictures.findLastIndex((other) => !other.star);
        kept.pictures.splice(last < 0 ? LIMIT : last, 1);
    }
    store();
    render();
}

// A picture goes into the history when somebody rests on it: on Enter and when the box is left,
// by the dice, by a seed that is taken.
const rest = { prompt: false, next: undefined };
async function settle() {
    const image = picture();
    if (!image) return;
    await image.decode().catch(() => {});
    const typed = (ask()?.value ?? '').split(/\s+/).filter(Boolean).join(' ');
    const rested = rest.prompt && image.dataset.prompt === typed;
    const drawn = rest.next !== undefined && image.src !== rest.next;
    if (rested) rest.prompt = false;
    if (drawn) rest.next = undefined;
    if (rested || drawn) add(image);
}
document.addEventListener('focusout', (event) => {
    if (event.target === ask() && event.target.value.trim()) { rest.prompt = true; settle(); }
});
document.addEventListener('keydown', (event) => {
    if (event.target === ask() && event.key === 'Enter' && !event.shiftKey) { rest.prompt = true; settle(); }
});
document.addEventListener('click', (event) => {
    if (event.target.closest('#tiue-dice, #tiue-variations button')) rest.next = picture()?.src ?? '';
}, true);  // before anything is replaced by the click

// The address of the page is a link to the picture that is shown.
let shown = '', speak;
function address() {
    const image = picture();
    if (!image || image.dataset.settings === shown) return;
    shown = image.dataset.settings;
    const settings = JSON.parse(shown), query = new URLSearchParams(location.search);
    for (const name of NAMES) query.delete(name);
    for (const name of NAMES) if (name in settings) query.set(name, settings[name]);
    history.replaceState(history.state, '', `${location.pathname}?${query}`);
    clearTimeout(speak);
    speak = setTimeout(() => say(`${image.alt}, seed ${settings.seed}`, true), 700);
}
new MutationObserver(() => { address(); settle(); }).observe(
    document.querySelector('#tiue-picture'), { childList: true, subtree: true, attributes: true });

async function copy(text, what) {
    try {
        await navigator.clipboard.writeText(text);
    } catch {  // without a secure connection there is no clipboard but this
        const area = document.createElement('textarea'), before = document.activeElement;
        area.value = text;
        document.body.append(area);
        area.select();
        document.execCommand('copy');
        area.remove();
        before?.focus();
    }
    say(`${what} copied`);
}
document.addEventListener('click', (event) => {
    const button = event.target.closest('[data-tiue]');
    if (!button) return;
    if (button.dataset.tiue === 'seed') copy(picture().dataset.seed, 'Seed');
    else if (button.dataset.tiue === 'link') copy(location.href, 'Link');
    else if (button.dataset.tiue === 'star') { add(picture(), true); say('Kept as a favourite'); }
});

// A saved PNG says how it was made, in a text chunk; the picture itself stays in the browser.
async function restore(file) {
    const bytes = new Uint8Array(await file.arrayBuffer()), view = new DataView(bytes.buffer);
    const text = (from, size) => new TextDecoder('latin1').decode(bytes.subarray(from, from + size));
    for (let at = 8; text(1, 3) === 'PNG' && at + 12 <= bytes.length;) {
        const size = view.getUint32(at);
        if (text(at + 4, 4) === 'tEXt' && text(at + 8, 5) === 'tiue\0') {
            rest.next = picture()?.src;
            return trigger('select', { settings: text(at + 13, size - 5) });
        }
        at += size + 12;
    }
    trigger('select', { settings: '' });
}
const files = (event) => [...(event.dataTransfer?.items ?? [])].some((item) => item.kind === 'file');
const live = () => element.checkVisibility();
document.addEventListener('dragover', (event) => { if (files(event) && live()) event.preventDefault(); });
document.addEventListener('drop', (event) => {
    if (!live() || !event.dataTransfer?.files.length) return;
    event.preventDefault();
    restore(event.dataTransfer.files[0]);
});
element.querySelector('.tiue-drop input').addEventListener('change', (event) => {
    if (event.target.files.length) restore(event.target.files[0]);
    event.target.value = '';
});
keep.addEventListener('change', () => {
    kept = { keep: keep.checked, pictures: keep.checked ? kept.pictures : [] };
    store();
    render();
});
render();
address();
