// Results that go on as one scrolls, and that follow the cut-off slider. Without this file: links and a button.
// The server renders every page; here they are only put below each other, and the address says which one is seen.

const AHEAD = "1500px"; // below the window; what lies there is fetched before it is seen
const RETRY_MS = 3000;
const leaves = document.querySelector("#results");
const form = document.querySelector("#refine");
let watching = null;
let fetching = new AbortController();

async function documentAt(address, signal) {
  const answer = await fetch(address, { signal, headers: { Accept: "text/html" } });
  if (!answer.ok) throw new Error(`${answer.status}`);
  return new DOMParser().parseFromString(await answer.text(), "text/html");
}

// Going on

function watch() {
  watching?.disconnect();
  const next = document.querySelector("#pages a[rel=next]");
  document.body.classList.toggle("going", Boolean(next)); // what stands below must not be seen to move down
  if (!next) return;
  watching = new IntersectionObserver(([entry]) => entry.isIntersecting && goOn(next), { rootMargin: `0px 0px ${AHEAD} 0px` });
  watching.observe(next);
}

async function goOn(next) {
  watching.disconnect();
  const { signal } = fetching;
  try {
    const page = await documentAt(next.href, signal);
    if (signal.aborted) return;
    leaves.append(...page.querySelectorAll("#results .leaf"));
    replaceById(page, "pages");
    watch();
  } catch {
    document.body.classList.remove("going"); // the link leads on as it would without this file
    if (!signal.aborted) setTimeout(watch, RETRY_MS);
  }
}

function replaceById(page, id) {
  const old = document.getElementById(id);
  const fresh = page.getElementById(id);
  if (old && fresh) old.replaceWith(fresh);
  else old?.remove();
  return fresh;
}

// The address says which page is seen, and the history how far into it, for the way back.

function seenLeaf() {
  const middle = innerHeight / 3;
  return [...leaves.querySelectorAll(".leaf")].findLast((leaf) => leaf.getBoundingClientRect().top <= middle) ?? leaves.querySelector(".leaf");
}

let noted = 0;
function note() {
  noted = 0;
  const leaf = seenLeaf();
  if (!leaf) return;
  const into = Math.round(-leaf.getBoundingClientRect().top);
  history.replaceState({ page: leaf.dataset.page, into }, "", leaf.dataset.url);
}

function comeBack() {
  const leaf = leaves.querySelector(`.leaf[data-page="${CSS.escape(history.state?.page ?? "")}"]`);
  if (leaf) scrollTo({ top: leaf.getBoundingClientRect().top + scrollY + history.state.into, behavior: "instant" });
}

if (leaves?.querySelector(".leaf")) {
  history.scrollRestoration = "manual"; // the browser's own would count from the first page
  comeBack();
  addEventListener("scroll", () => (noted ||= setTimeout(note, 150)), { passive: true });
  addEventListener("pagehide", note);
  watch();
}

// Refining: the form works by itself; here its results come without a new page, so that the slider keeps the hand.

function addressOf(form) {
  const values = [...new FormData(form)].filter(([name, value]) => value && !(name === "sort" && value === "score") && !(name === "cutoff" && Number(value) === 0));
  return `${form.action}?${new URLSearchParams(values)}`;
}

async function refine() {
  fetching.abort();
  fetching = new AbortController();
  const { signal } = fetching;
  const address = addressOf(form);
  try {
    const page = await documentAt(address, signal);
    if (signal.aborted) return;
    leaves.replaceChildren(...page.querySelector("#results").childNodes);
    for (const id of ["summary", "pages"]) {
      if (!replaceById(page, id)?.isConnected && page.getElementById(id)) leaves.after(page.getElementById(id));
    }
    for (const id of ["shown", "cutoff-value"]) {
      const [old, fresh] = [document.getElementById(id), page.getElementById(id)];
      if (old && fresh) old.textContent = fresh.textContent;
    }
    history.replaceState(null, "", address);
    watch();
  } catch (error) {
    if (error.name !== "AbortError") form.submit();
  }
}

if (form) {
  form.addEventListener("input", refine);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    refine();
  });
}

// A click beside the filters, or Escape, closes them.

const filters = document.querySelector(".filters");
if (filters) {
  document.addEventListener("pointerdown", (event) => filters.contains(event.target) || (filters.open = false));
  filters.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    filters.open = false;
    filters.querySelector("summary").focus();
  });
}
