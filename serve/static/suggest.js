// Suggestions as one types: the search box becomes a combobox with a listbox popup (ARIA 1.2).
// Without this file the box is a plain form; the server alone knows how a query is written.

const form = document.querySelector("form[data-suggest]");
const input = form.querySelector("input");

const list = Object.assign(document.createElement("ul"), { id: "suggestions", className: "suggestions", hidden: true });
list.setAttribute("role", "listbox");
list.setAttribute("aria-label", "Suggested tags");
const status = Object.assign(document.createElement("div"), { className: "unseen" });
status.setAttribute("role", "status");
form.append(list, status);

for (const [name, value] of Object.entries({
  role: "combobox",
  "aria-autocomplete": "list",
  "aria-controls": list.id,
  "aria-expanded": "false",
})) {
  input.setAttribute(name, value);
}

let suggestions = [];
let active = -1;
let request = new AbortController();

function close() {
  request.abort();
  suggestions = [];
  list.hidden = true;
  list.replaceChildren();
  input.setAttribute("aria-expanded", "false");
  activate(-1);
}

function activate(index) {
  list.children[active]?.setAttribute("aria-selected", "false");
  active = index;
  const option = list.children[active];
  if (option) {
    option.setAttribute("aria-selected", "true");
    option.scrollIntoView({ block: "nearest" });
    input.setAttribute("aria-activedescendant", option.id);
  } else {
    input.removeAttribute("aria-activedescendant");
  }
}

function option({ tag, num_images }, index) {
  const item = Object.assign(document.createElement("li"), { id: `suggestion-${index}` });
  item.setAttribute("role", "option");
  item.setAttribute("aria-selected", "false");
  const name = Object.assign(document.createElement("bdi"), { textContent: tag });
  const count = Object.assign(document.createElement("span"), { className: "note" });
  count.textContent = num_images.toLocaleString("en");
  item.append(name, " ", count);
  return item;
}

function show(found) {
  close();
  suggestions = found;
  list.replaceChildren(...found.map(option));
  list.hidden = found.length === 0;
  input.setAttribute("aria-expanded", String(found.length > 0));
  status.textContent = found.length === 1 ? "1 suggested tag" : `${found.length || "No"} suggested tags`;
}

async function ask() {
  request.abort();
  request = new AbortController();
  const { signal } = request;
  try {
    const answer = await fetch(`${form.dataset.suggest}?${new URLSearchParams({ q: input.value })}`, { signal });
    const found = answer.ok ? (await answer.json()).suggestions : [];
    if (!signal.aborted) show(found);
  } catch {
    if (!signal.aborted) close(); // no suggestions are no reason to disturb the search
  }
}

function take(index, submit) {
  input.value = suggestions[index].query + (submit ? "" : " ");
  close();
  if (submit) form.requestSubmit();
}

input.addEventListener("input", (event) => {
  if (event.isComposing) return;
  activate(-1); // the text has changed, so Enter means the text
  if (!input.value.trim()) close();
  else ask(); // at once: an answer takes less than the next key, and the older question is called off
});

input.addEventListener("compositionend", () => input.dispatchEvent(new Event("input")));

input.addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  const { key } = event;
  const last = suggestions.length - 1;
  if (key === "ArrowDown" && last < 0 && input.value.trim()) ask();
  else if (key === "ArrowDown" && last >= 0) activate(active === last ? -1 : active + 1);
  else if (key === "ArrowUp" && last >= 0) activate(active === -1 ? last : active - 1);
  else if (key === "Enter" && active >= 0) take(active, true);
  else if (key === "Tab" && active >= 0 && !event.shiftKey) take(active, false);
  else if (key === "Escape" && last >= 0) close();
  else return;
  event.preventDefault();
});

list.addEventListener("pointerdown", (event) => event.preventDefault()); // the box keeps the focus
list.addEventListener("click", (event) => {
  const item = event.target.closest("[role=option]");
  if (item) take([...list.children].indexOf(item), true);
});
input.addEventListener("blur", close);
form.addEventListener("submit", close);
