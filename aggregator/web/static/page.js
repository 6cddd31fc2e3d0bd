// Keeps the page new: fetches it every few seconds and changes only what differs, so that focus, selection, scroll positions and
// opened details stay. Ticks times in between. All HTML is made by the server (aggregator/web/view.py).
"use strict";

const EVERY_MS = 2500, GIVE_UP_MS = 8000;
let ahead = 0; // the server's clock before this one, seconds
let heard = Date.now();

const now = () => Date.now() / 1000 + ahead;

// As `span` in aggregator/facts/sites.py.
function span(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60), rest = whole % 60;
  if (minutes < 60) return minutes < 10 && rest ? `${minutes} min ${rest} s` : `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  return `${Math.floor(hours / 24)} days`;
}

function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function tick(root) {
  for (const one of root.querySelectorAll("time[data-since]")) say(one, `${span(now() - one.dataset.since)} ago`);
  for (const one of root.querySelectorAll("time[data-until]")) {
    const left = one.dataset.until - now();
    say(one, left > 0 ? span(left) : "any moment");
  }
}

function localise(root) {
  for (const one of root.querySelectorAll("time[data-at]")) {
    const at = new Date(one.dataset.at * 1000), today = at.toDateString() === new Date().toDateString();
    say(one, today ? at.toLocaleTimeString() : at.toLocaleString());
  }
}

function alike(one, other) {
  return one.nodeType === other.nodeType && one.nodeName === other.nodeName && one.dataset?.key === other.dataset?.key;
}

function patchAttributes(old, fresh) {
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const { name } of [...old.attributes])
    if (!fresh.hasAttribute(name) && !(name === "open" && old.nodeName === "DETAILS")) old.removeAttribute(name);
}

// Makes the children of `old` those of `fresh`. Children with a data-key are found again wherever they have moved to.
function patchChildren(old, fresh) {
  const keyed = new Map([...old.children].filter((one) => one.dataset.key).map((one) => [one.dataset.key, one]));
  let place = old.firstChild;
  for (const wanted of [...fresh.childNodes]) {
    const known = wanted.dataset?.key && keyed.get(wanted.dataset.key);
    if (known && known !== place && alike(known, wanted)) old.insertBefore(known, place);
    else if (!place || !alike(place, wanted)) {
      old.insertBefore(document.importNode(wanted, true), place);
      continue;
    }
    const current = known && alike(known, wanted) ? known : place;
    if (current === place) place = place.nextSibling;
    patch(current, wanted);
  }
  while (place) {
    const next = place.nextSibling;
    place.remove();
    place = next;
  }
}

function patch(old, fresh) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  patchAttributes(old, fresh);
  patchChildren(old, fresh);
}

function take(text) {
  const fresh = new DOMParser().parseFromString(text, "text/html");
  ahead = fresh.querySelector("main").dataset.now - Date.now() / 1000;
  heard = Date.now();
  tick(fresh);
  localise(fresh);
  if (document.title !== fresh.title) document.title = fresh.title;
  for (const part of ["header", "main", "footer"]) patch(document.querySelector(part), fresh.querySelector(part));
  say(document.getElementById("notice"), "");
}

async function refresh() {
  if (!document.hidden) {
    try {
      const answer = await fetch(location.pathname, { cache: "no-store", signal: AbortSignal.timeout(GIVE_UP_MS) });
      const text = await answer.text();
      if (!answer.ok) throw new Error(text.slice(0, 300));
      take(text);
    } catch (error) {
      const why = error.name === "Error" ? ` (${error.message})` : "";
      const at = new Date(heard).toLocaleTimeString();
      say(document.getElementById("notice"), `No answer from the aggregator since ${at}${why}. What is shown is of then; trying again.`);
    }
  }
  setTimeout(refresh, EVERY_MS);
}

ahead = document.querySelector("main").dataset.now - Date.now() / 1000;
localise(document);
setInterval(() => tick(document), 1000);
setTimeout(refresh, EVERY_MS);
