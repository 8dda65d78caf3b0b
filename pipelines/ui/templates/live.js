"use strict";

/* While the run works, the first page replaces its progress every few seconds. */
const PAUSE = 3000;
const progress = document.getElementById("progress");

async function follow() {
  try {
    const response = await fetch("progress");
    if (!response.ok) throw new Error(response.statusText);
    const found = await response.json();
    progress.innerHTML = found.html; // escaped by the server; the page's policy forbids inline scripts
    if (!found.works) return;
  } catch (error) {
    // `crossaudit ui` does not answer for now, or the run cannot be read: try again.
  }
  setTimeout(follow, PAUSE);
}

if (progress.dataset.works === "true") setTimeout(follow, PAUSE);
