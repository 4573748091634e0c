// Thumbs stay on the page; without this file a thumb is a form that comes back to its picture.

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[form=judge]");
  if (!button) return;
  event.preventDefault();
  const body = new FormData(button.form, button);
  const pressed = button.getAttribute("aria-pressed") === "true";
  try {
    const answer = await fetch(button.form.action, { method: "POST", body, redirect: "manual" });
    if (answer.type !== "opaqueredirect") throw new Error(`${answer.status}`);
    for (const each of button.parentElement.querySelectorAll("button[form=judge]")) press(each, each === button && !pressed);
  } catch {
    button.form.requestSubmit(button); // shows what is wrong
  }
});

// A pressed thumb takes back what it said.
function press(button, on) {
  const [, image, rank] = button.value.split(":");
  button.setAttribute("aria-pressed", String(on));
  button.value = `${on ? "" : button.dataset.grade}:${image}:${rank}`;
}
