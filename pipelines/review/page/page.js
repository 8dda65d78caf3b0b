"use strict";

const KEYS = { 1: "copy", c: "copy", 2: "part", p: "part", 3: "no copy", n: "no copy", 4: "unsure", u: "unsure" };
const TINY = 128; // pixels; larger pictures are smoothed

const $ = (id) => document.getElementById(id);
const review = { rater: null, answers: [], number: 0, since: 0, busy: true };

async function ask(path, options) {
  const response = await fetch(path, options);
  if (!response.ok) throw new Error(await response.text());
  return response.json();
}

function show(state) {
  document.body.dataset.state = state;
}

function setBusy(busy) {
  review.busy = busy;
  document.body.classList.toggle("busy", busy);
}

function fail(error) {
  $("error").textContent = error instanceof TypeError
    ? "crossaudit does not answer. Is `crossaudit review` still running? Answers given before are stored."
    : error.message;
}

function source(number, side) {
  return `picture/${number}/${side}?rater=${encodeURIComponent(review.rater)}`;
}

async function load(image, url) {
  image.src = url;
  await image.decode();
  image.classList.toggle("tiny", Math.max(image.naturalWidth, image.naturalHeight) <= TINY);
}

/* Shows the pair with this number; the number behind the last pair shows the end. */
async function go(number) {
  const total = review.answers.length;
  const judged = review.answers.filter((answer) => answer !== null).length;
  review.number = number;
  $("progress").max = total;
  $("progress").value = judged;
  $("total").textContent = total;
  document.body.dataset.number = number;
  if (number >= total) {
    $("place").textContent = "";
    setBusy(false);
    show("done");
    return;
  }
  setBusy(true);
  $("place").textContent = `${number + 1} of ${total}`;
  for (const button of document.querySelectorAll("[data-answer]")) {
    button.classList.toggle("given", button.dataset.answer === review.answers[number]);
  }
  show("judging");
  try {
    await Promise.all([load($("left"), source(number, "left")), load($("right"), source(number, "right"))]);
  } catch (error) {
    fail(error instanceof DOMException ? new TypeError() : error);
    return;
  }
  $("error").textContent = "";
  review.since = performance.now();
  setBusy(false);
  if (number + 1 < total) { // fetch the next pair while the rater looks at this one
    for (const side of ["left", "right"]) new Image().src = source(number + 1, side);
  }
}

/* Stores the answer before the next pair is shown. */
async function give(answer) {
  const { rater, number } = review;
  if (review.busy || document.body.dataset.state !== "judging") return;
  setBusy(true);
  try {
    await ask("answer", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ rater, number, answer, seconds: (performance.now() - review.since) / 1000 }),
    });
  } catch (error) {
    fail(error);
    setBusy(false);
    return;
  }
  review.answers[number] = answer;
  await go(next(number + 1));
}

/* The first pair from here on without an answer, else the first one anywhere, else the end. */
function next(start) {
  const after = review.answers.indexOf(null, start);
  const first = after >= 0 ? after : review.answers.indexOf(null);
  return first >= 0 ? first : review.answers.length;
}

async function start(rater) {
  try {
    const state = await ask(`state?rater=${encodeURIComponent(rater)}`);
    review.rater = state.rater;
    review.answers = state.answers;
  } catch (error) {
    fail(error);
    show("asking");
    $("name").focus();
    return;
  }
  $("error").textContent = "";
  $("who").textContent = `rater ${review.rater}`;
  await go(next(0));
}

document.addEventListener("keydown", (event) => {
  if (document.body.dataset.state === "asking" || event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.toLowerCase();
  const forward = key === "arrowright" && review.answers[review.number] !== null;
  if (key in KEYS) {
    if (!event.repeat) give(KEYS[key]); // a key held down judges one pair
  } else if (key === "arrowleft" || key === "backspace") {
    if (!review.busy && review.number > 0) go(review.number - 1);
  } else if (forward) {
    if (!review.busy && review.number < review.answers.length) go(review.number + 1);
  } else {
    return;
  }
  event.preventDefault();
});

for (const button of document.querySelectorAll("[data-answer]")) {
  button.addEventListener("click", () => {
    button.blur();
    give(button.dataset.answer);
  });
}

(async () => {
  let known = null;
  try {
    known = (await ask("rater")).rater;
  } catch (error) {
    fail(error);
    return;
  }
  const rater = known || new URLSearchParams(location.search).get("rater");
  if (rater) {
    await start(rater);
  } else {
    show("asking");
    $("name").focus();
  }
})();
