// Search by picture from any page: the camera opens the chooser, a picture may be dropped anywhere or pasted.
// Without this file the camera is a link to a page with a form.

const camera = document.querySelector("a.by-picture");
const own = document.querySelector("#upload");
const form = own ?? makeForm();
const input = form.querySelector("input[type=file]");
const banner = Object.assign(document.createElement("div"), { className: "dropping", hidden: true, textContent: "Drop the picture to search with it" });
const said = Object.assign(document.createElement("div"), { className: "unseen" });
said.setAttribute("role", "status");
document.body.append(banner, said);

function makeForm() {
  const made = Object.assign(document.createElement("form"), { action: camera.href, method: "post", enctype: "multipart/form-data", hidden: true });
  made.append(Object.assign(document.createElement("input"), { type: "file", name: "picture", accept: "image/*" }));
  document.body.append(made);
  return made;
}

function search(files) {
  const picture = [...files].find((file) => file.type.startsWith("image/"));
  if (!picture) return false;
  const carrier = new DataTransfer();
  carrier.items.add(picture);
  input.files = carrier.files;
  send();
  return true;
}

function send() {
  said.textContent = "Looking at the picture";
  document.body.classList.add("looking");
  form.requestSubmit();
}

camera?.addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  input.click();
});
input.addEventListener("change", () => input.files.length && send());

const holdsFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
document.addEventListener("dragover", (event) => {
  if (!holdsFiles(event)) return;
  event.preventDefault();
  banner.hidden = false;
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) banner.hidden = true;
});
document.addEventListener("drop", (event) => {
  if (!holdsFiles(event)) return;
  event.preventDefault();
  banner.hidden = true;
  if (!search(event.dataTransfer.files)) said.textContent = "That is no picture";
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData?.files.length && search(event.clipboardData.files)) event.preventDefault();
});
window.addEventListener("pageshow", () => document.body.classList.remove("looking")); // after Back
