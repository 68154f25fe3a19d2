// A chapter's page: its instruments, and its questions.

import { element } from "./canvas.js";
import { addressed, opened } from "./pages.js";

const { scene, ...given } = addressed(); // the setting of a link: scene=03&layers=30&…

async function open(place) {
  const view = await opened(place);
  if (scene === view.scene) view.follow(given), place.scrollIntoView();
}

// A question says why an answer is right or wrong once it is chosen.
function answer({ currentTarget: question, target }) {
  const right = target.value === question.dataset.right, why = question.querySelector(".why");
  const parts = `${right ? "Right" : "Not this one"}: ${target.dataset.why}`.split("`"); // every other one is code
  why.replaceChildren(), parts.forEach((textContent, k) => element(k % 2 ? "code" : "span", why, { textContent }));
  why.classList.toggle("right", right);
}

// On a phone a picture is shown as large as it is, and the other way round.
const enlarge = ({ currentTarget }) => currentTarget.parentElement.classList.toggle("large");

document.querySelectorAll("figure img").forEach((image) => image.addEventListener("click", enlarge));
document.querySelectorAll(".scene").forEach(open);
document.querySelectorAll(".question").forEach((question) => question.addEventListener("change", answer));
