// Keeps the list up to date without reloading the page: it asks for the list again and replaces what differs, so
// that focus and scroll stay. Nothing is asked while the tab is hidden.
"use strict";

const list = document.getElementById("list");
const filters = document.getElementById("filters");
const news = document.getElementById("news");
const trouble = document.getElementById("trouble");
const INTERVAL = 3000, LONGEST = 60000, NEWS_EVERY = 10000;
const OVER = { success: "is done", partial: "is done in part, or with warnings", failed: "has failed", cancelled: "is stopped" };

let etag = list.dataset.etag;
let answered = Date.now();
let failures = 0;
let asking = 0;
let timer;
let pending = [];
let spoken = 0;
const shown = new Map(); // id to the HTML that the server sent for it

function parts(root) {
  return [...root.querySelectorAll("#days, #total, #pages")];
}

function remember() {
  for (const element of [...parts(list), ...list.querySelectorAll("#scans tbody > tr")]) shown.set(element.id, element.outerHTML);
}

function replaceWith(old, fresh) {
  const scrolled = old.querySelector(".days")?.scrollLeft;
  const focused = old.contains(document.activeElement) ? document.activeElement.id : "";
  old.replaceWith(fresh);
  if (scrolled) fresh.querySelector(".days").scrollLeft = scrolled;
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
}

function adopt(html) {
  const fresh = new DOMParser().parseFromString(html, "text/html");
  for (const part of parts(fresh)) {
    const html = part.outerHTML;
    if (shown.get(part.id) !== html) {
      replaceWith(document.getElementById(part.id), part);
      shown.set(part.id, html);
    }
  }
  document.getElementById("scans").hidden = fresh.getElementById("scans").hidden;
  const body = document.querySelector("#scans tbody");
  let next = body.firstElementChild;
  for (const row of [...fresh.querySelectorAll("#scans tbody > tr")]) {
    const html = row.outerHTML;
    let old = document.getElementById(row.id);
    if (old && shown.get(row.id) !== html) {
      tell(old.dataset, row.dataset);
      if (next === old) next = row;
      replaceWith(old, row);
      old = row;
    } else if (!old) {
      old = row;
    }
    shown.set(row.id, html);
    if (old === next) next = next.nextElementSibling;
    else body.insertBefore(old, next);
  }
  while (next) {
    const gone = next;
    next = next.nextElementSibling;
    shown.delete(gone.id);
    gone.remove();
  }
  dress(list);
}

// For screen readers: scans that have ended, a few at a time.
function tell(before, after) {
  if (before.state !== after.state && after.state in OVER) pending.push(`${after.name} ${OVER[after.state]}.`);
  speak();
}

function speak() {
  if (!pending.length || Date.now() - spoken < NEWS_EVERY) return;
  news.textContent = pending.length > 3 ? `${pending.length} scans have ended.` : pending.join(" ");
  pending = [];
  spoken = Date.now();
}

function age(since) {
  const minutes = Math.floor((Date.now() - new Date(since)) / 60000);
  if (minutes < 1) return "just now";
  if (minutes < 60) return `${minutes} min ago`;
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ago`;
  return `${Math.floor(minutes / 1440)} days ago`;
}

function dress(root) {
  showTimes(root);
  for (const element of root.querySelectorAll("[data-since]")) element.textContent = age(element.dataset.since);
}

function query() {
  const given = [...new FormData(filters)].filter(([, value]) => value);
  const page = new URLSearchParams(location.search).get("page");
  return new URLSearchParams(page ? [...given, ["page", page]] : given);
}

async function update() {
  clearTimeout(timer);
  if (document.hidden) return;
  const number = ++asking;
  let reply, body;
  try {
    const headers = etag ? { "If-None-Match": etag } : {};
    const address = `${list.dataset.source}?${query()}`;
    reply = await fetch(address, { headers, cache: "no-store", credentials: "same-origin", signal: AbortSignal.timeout(30000) });
    if (reply.status === 401) return location.reload();
    if (reply.status === 200) body = await reply.text();
    else if (reply.status !== 304) throw new Error(reply.status);
  } catch (error) {
    if (number !== asking) return;
    failures += 1;
    if (failures > 1 || !reply) {
      const said = reply?.status === 403 ? "You may not see scans any more" : "Airflow does not answer";
      trouble.textContent = `${said}: the list is as of ${timeOfDay.format(answered)}. It is tried again.`;
      trouble.hidden = false;
    }
    timer = setTimeout(update, Math.min(INTERVAL * 2 ** failures, LONGEST));
    return;
  }
  if (number !== asking) return; // another one was asked for since
  failures = 0;
  trouble.hidden = true;
  answered = Date.now();
  if (body !== undefined) {
    etag = reply.headers.get("ETag");
    adopt(body);
  } else {
    dress(list);
  }
  speak();
  timer = setTimeout(update, INTERVAL);
}

// Filters are in the address, so that it can be shared.
let typing;
function choose() {
  clearTimeout(typing);
  const given = new URLSearchParams([...new FormData(filters)].filter(([, value]) => value));
  history.replaceState(null, "", `${location.pathname}${given.size ? `?${given}` : ""}`);
  document.getElementById("own-address").href = location.href;
  document.getElementById("all").hidden = !given.size;
  etag = null;
  update();
}

filters.addEventListener("submit", (event) => {
  event.preventDefault();
  choose();
});
filters.addEventListener("change", choose);
filters.addEventListener("input", (event) => {
  if (event.target.type !== "search") return;
  clearTimeout(typing);
  typing = setTimeout(choose, 250);
});
document.addEventListener("visibilitychange", update);
document.addEventListener("error", (event) => {
  if (event.target.tagName !== "IMG") return;
  const empty = document.createElement("span");
  empty.className = "no-picture";
  event.target.replaceWith(empty);
}, true);

remember();
dress(list);
{
  const chosen = document.querySelector(".days .chosen");
  if (chosen) chosen.parentElement.scrollLeft = chosen.offsetLeft - chosen.parentElement.offsetLeft;
}
timer = setTimeout(update, INTERVAL);
