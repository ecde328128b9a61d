"use strict";
// The page is complete without this file. With it, parts are replaced as the server sends them, and the
// countdown shows seconds.

const REFUSED_WAIT_MS = 30_000;

const status = document.querySelector(".live");
const held = new Map();
let clockOffsetMs = 0;
let source = null;
let eventsAddress = document.body.dataset.events;

function say(state, text) {
  status.hidden = false;
  status.className = `live ${state}`;
  if (status.textContent !== text) status.textContent = text;
}

function isBeingRead(part) {
  const selection = document.getSelection();
  return selection !== null && !selection.isCollapsed && selection.containsNode(part, true);
}

function keysOf(part) {
  return new Map([...part.querySelectorAll("[data-key]")].map((row) => [row.dataset.key, row.textContent]));
}

// Replaces the content of a part, keeps the keyboard focus and the scroll position, and marks what changed.
function replace(part, html) {
  const before = keysOf(part);
  const frame = part.querySelector(".scroll");
  const [left, top] = frame === null ? [0, 0] : [frame.scrollLeft, frame.scrollTop];
  const focused = part.contains(document.activeElement) ? document.activeElement : null;
  const order = focused === null ? -1 : focusable(part).indexOf(focused);
  part.innerHTML = html;
  part.querySelector(".scroll")?.scrollTo({ left, top, behavior: "instant" });
  if (focused !== null) {
    const same = [...part.querySelectorAll("a")].find((link) => focused.href && link.href === focused.href);
    (same ?? focusable(part)[order])?.focus({ preventScroll: true });
  }
  if (part.id === "leaderboard" || part.id === "submissions") {
    for (const row of part.querySelectorAll("[data-key]")) {
      if (before.get(row.dataset.key) !== row.textContent) row.classList.add("changed");
    }
  }
}

function focusable(part) {
  return [...part.querySelectorAll("a, [tabindex], summary")];
}

function show(id, html) {
  const part = document.getElementById(id);
  if (part === null || !("part" in part.dataset)) return;
  // A part in which somebody selects text is left alone until the selection is gone.
  if (isBeingRead(part)) held.set(id, html);
  else {
    held.delete(id);
    replace(part, html);
  }
}

function listen() {
  source?.close();
  source = new EventSource(eventsAddress);
  source.addEventListener("open", () => say("on", "live"));
  source.addEventListener("time", (event) => { clockOffsetMs = Date.parse(event.data) - Date.now(); });
  source.addEventListener("parts", (event) => {
    // Where a new connection goes on; within one, the browser sends the last id by itself.
    eventsAddress = `/events?since=${encodeURIComponent(event.lastEventId)}`;
    for (const [id, html] of Object.entries(JSON.parse(event.data))) show(id, html);
    tick();
    say("on", "live");
  });
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) {
      // Refused, for want of seats or by a proxy: browsers do not try that again by themselves.
      say("off", "not live");
      setTimeout(() => document.hidden || listen(), REFUSED_WAIT_MS);
    } else say("wait", "reconnecting");
  });
}

function pad(number) {
  return String(number).padStart(2, "0");
}

function tick() {
  for (const element of document.querySelectorAll("time.until")) {
    const left = Math.max(0, Math.floor((Date.parse(element.dateTime) - Date.now() - clockOffsetMs) / 1000));
    const days = Math.floor(left / 86_400);
    const clock = `${pad(Math.floor(left / 3600) % 24)}:${pad(Math.floor(left / 60) % 60)}:${pad(left % 60)}`;
    element.textContent = days > 0 ? `${days} d ${clock}` : clock;
  }
}

async function reload() {
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (!answer.ok) throw new Error(String(answer.status));
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    const main = document.getElementById("main");
    const next = fresh.getElementById("main");
    if (next !== null && next.innerHTML !== lastMain && !isBeingRead(main)) {
      const open = [...main.querySelectorAll("details")].map((details) => details.open);
      replace(main, next.innerHTML);
      lastMain = next.innerHTML;
      main.querySelectorAll("details").forEach((details, index) => { details.open = open[index] ?? false; });
    }
    say("on", "live");
  } catch {
    say("wait", "reconnecting");
  }
}

let lastMain = "";

if (eventsAddress !== undefined) {
  listen();
  tick();
  setInterval(tick, 1000);
  document.addEventListener("selectionchange", () => {
    for (const [id, html] of [...held]) show(id, html);
  });
  // A page that nobody looks at holds no connection.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) source.close();
    else listen();
  });
} else if (document.body.dataset.reload !== undefined) {
  lastMain = document.getElementById("main").innerHTML;
  say("on", "live");
  setInterval(() => document.hidden || reload(), 1000 * Number(document.body.dataset.reload));
}
