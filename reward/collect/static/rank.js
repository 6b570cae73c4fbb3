/**
 * The ranking page: one `ranking`, which every way of ranking replaces by a new one through change(), which shows,
 * announces, and saves it. The hidden input `ranks` holds what would be submitted, and nothing else is.
 */

import { Board } from "./rank/board.js";
import { Clock } from "./rank/clock.js";
import { Draft } from "./rank/draft.js";
import { Drag } from "./rank/drag.js";
import * as to from "./rank/ranking.js";
import { Problem, send } from "./rank/requests.js";
import { View } from "./rank/view.js";

document.documentElement.classList.add("js");
const element = (id) => document.getElementById(id);
const page = JSON.parse(element("page-data").textContent);
const { settings, urls } = page;
const form = element("rank-form");
const board = new Board(form);
const view = new View(board);
const clock = new Clock();
const nothing = to.fromRanks(board.ids, settings.allow_ties, {});

let ranking = nothing;
const past = [];
const waysUsed = new Set();

function announce(text) {
  element("announcer").textContent = text;
}

/** A message that stays until the next change, with buttons: name -> what it does. Without a text it goes. */
function tell(text, buttons = {}) {
  const message = element("message");
  message.hidden = !text;
  message.replaceChildren(text ?? "");
  for (const [textContent, act] of Object.entries(buttons)) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent });
    button.addEventListener("click", () => (tell(null), act()));
    message.append(button);
  }
}

// Ways of ranking

function change(id, next, way) {
  const before = ranking;
  ranking = to.settled(next);
  waysUsed.add(way);
  board.show(ranking);
  const name = `Response ${board.letter(id)}`;
  if (to.same(before, ranking)) return announce(`${name} stays: ${board.whereIs(ranking, id)}`);
  past.push(before);
  announce(`${name} moved to ${board.whereIs(ranking, id)}`);
  tell(null);
  draft.changed();
}

function undo() {
  if (!past.length) return announce("There is nothing to undo");
  ranking = past.pop();
  board.show(ranking);
  announce("Undone");
  draft.changed();
}

const ACTIONS = {
  up: to.raised,
  down: to.lowered,
  tie: to.tiedWithAbove,
  unacceptable: to.unacceptable,
  unrank: to.without,
};

const act = (id, action, way) => change(id, ACTIONS[action](ranking, id), way);

function choose(id, value, way) {
  if (value === "") act(id, "unrank", way);
  else if (value === "unacceptable") act(id, value, way);
  else change(id, to.placed(ranking, id, Number(value) - 1), way);
}

function drop(id, { zone, index, where }, way) {
  if (zone === "tray") act(id, "unrank", way);
  else if (zone === "unacceptable") act(id, zone, way);
  else if (where === "into") change(id, to.placed(ranking, id, index), way);
  else change(id, to.inserted(ranking, id, where === "before" ? index : index + 1), way);
  board.focus(id);
}

const drag = new Drag(board, element("ghost"), element("bar"), { ranking: () => ranking, drop });

form.addEventListener("click", ({ target }) => {
  const button = target.closest("[data-action]");
  if (button) act(button.closest("[data-response]").dataset.response, button.dataset.action, "buttons");
});

form.addEventListener("change", ({ target }) => {
  if (target.closest(".popover")) return;
  if (target.closest(".choice")) choose(target.closest("[data-response]").dataset.response, target.value, "select");
  else draft.changed();
});

form.addEventListener("input", ({ target }) => {
  if (target.matches("textarea") && !target.closest(".popover")) draft.changed();
});

element("undo").addEventListener("click", undo);

// Keys: see templates/_keys.html.j2

const CARD_KEYS = { "=": "tie", x: "unacceptable", 0: "unrank" };
const PAGE_KEYS = { u: undo, s: () => open("skip"), f: () => open("flag"), "?": () => view.keys.showModal() };
const TYPING = "textarea, select, dialog, input:not([type=radio], [type=checkbox])";

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") return drag.end(false), close();
  if ((event.ctrlKey || event.metaKey) && event.key === "Enter") return element("submit").click();
  if (!view.chosen.keys || event.target.closest(TYPING)) return;
  const meant = meaning(event);
  if (meant) event.preventDefault(), meant();
});

/** What to do for a key, or nothing. */
function meaning({ key, ctrlKey, metaKey, altKey, shiftKey }) {
  key = key.toLowerCase();
  if (ctrlKey || metaKey) return key === "z" && !shiftKey ? undo : null;
  if (altKey) return /^arrow(up|down)$/.test(key) ? () => onFocused((id) => act(id, key.slice(5), "keyboard")) : null;
  if (/^[1-9]$/.test(key) && key <= board.ids.length) return () => onFocused((id) => choose(id, key, "keyboard"));
  if (key in CARD_KEYS) return () => onFocused((id) => act(id, CARD_KEYS[key], "keyboard"));
  const named = board.ids.find((id) => board.letter(id).toLowerCase() === key);
  return named && !shiftKey ? () => board.focus(named) : PAGE_KEYS[key];
}

function onFocused(move) {
  const id = board.focused();
  if (!id) return announce("Go to a response first: press its letter");
  move(id);
  board.focus(id);
}

function open(name) {
  const panel = element(name);
  if (!panel) return;
  if (name === "flag") form.elements.flag_target.value = board.focused() ?? "";
  panel.open = true;
  panel.querySelector("select").focus();
}

function close() {
  const panel = form.querySelector(".popover[open]");
  if (!panel) return;
  panel.open = false;
  panel.querySelector("summary").focus();
}

// One panel at a time
const panels = [...form.querySelectorAll(".popover")];
for (const panel of panels) {
  panel.addEventListener("toggle", () => {
    for (const other of panels) if (panel.open && other !== panel) other.open = false;
  });
}

// What was entered, and its draft

function entered() {
  const data = new FormData(form);
  return {
    ...to.toDraft(ranking),
    not_rankable: data.has("none") ? data.get("not_rankable") : null,
    ratings: Object.fromEntries(settings.criteria.map((name, index) => [name, ratings(data, index)])),
    comment: data.get("comment"),
    demonstration: data.get("demonstration"),
    active_seconds: clock.seconds,
  };
}

function ratings(data, criterion) {
  const rated = board.ids.map((id) => [id, Number(data.get(`rating-${criterion}-${id}`))]);
  return Object.fromEntries(rated.filter(([, mark]) => mark));
}

function enter(payload) {
  ranking = to.settled(to.fromRanks(board.ids, settings.allow_ties, payload));
  form.elements.none.checked = payload.not_rankable != null;
  for (const name of ["not_rankable", "comment", "demonstration"]) form.elements[name].value = payload[name] ?? "";
  settings.criteria.forEach((name, index) => {
    for (const id of board.ids) form.elements[`rating-${index}-${id}`].value = payload.ratings?.[name]?.[id] ?? "";
  });
  clock.seconds = Math.max(clock.seconds, payload.active_seconds ?? 0);
  board.show(ranking);
}

/** The judgement in a payload, without what was measured, comparable as text. */
function essence({ ranks, unacceptable, not_rankable, ratings, comment, demonstration }) {
  const rated = settings.criteria.map((name) => board.ids.map((id) => ratings?.[name]?.[id] ?? 0));
  const ranked = board.ids.map((id) => (unacceptable?.includes(id) ? "unacceptable" : (ranks?.[id] ?? 0)));
  return JSON.stringify([ranked, rated, not_rankable || "", comment || "", demonstration || ""]);
}

const request = (method, url, body, options = {}) =>
  send(method, url, body, { csrfToken: form.elements.csrf_token.value, ...options });

const STATES = {
  unsaved: "Not saved yet",
  saving: "Saving\u2026",
  saved: "Draft saved",
  failed: "Not saved, trying again",
  kept: "Kept in this browser until you store it",
};

function showState(state) {
  const shown = element("save-state");
  if (state === "failed" && shown.dataset.state !== state) announce("The draft is not saved");
  shown.dataset.state = state;
  shown.textContent = STATES[state];
  element("retry").hidden = state !== "failed";
}

const draft = new Draft({
  url: urls.draft,
  rev: page.draft_rev,
  name: page.copy,
  put: (url, body, keepalive) => request("PUT", url, body, { keepalive }),
  entered,
  essence,
  show: showState,
  differ: (theirs) =>
    tell("This item was also changed in another tab or window. Which entries count?", {
      "The other ones": () => (enter(theirs), draft.settle()),
      "These here": () => draft.save(),
    }),
  refused: explain,
});

element("retry").addEventListener("click", () => draft.save());

// Submitting, skipping, reporting

let isBusy = false;

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (isBusy || draft.isOver) return;
  isBusy = true;
  form.setAttribute("aria-busy", "true");
  try {
    await { submit, skip, flag }[event.submitter.value]();
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    explain(problem);
  } finally {
    isBusy = false;
    form.removeAttribute("aria-busy");
  }
});

form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target.matches("input")) event.preventDefault(); // it would submit
});

async function submit() {
  const body = submission();
  const obstacle = whatIsMissing(body);
  if (obstacle) return tell(obstacle);
  const headers = { "Idempotency-Key": form.elements.key.value };
  const stored = await request("POST", urls.submit, body, { headers });
  if (board.ids.some((id) => stored.ranks[id] !== body.ranks[id])) {
    return tell("The server stored another ranking than the one here. Please tell the lead.");
  }
  leave(`${urls.next}?stored=${stored.annotation_id}`);
}

function submission() {
  const { columns, raw } = view.chosen;
  const judgement = { ...entered(), client: { ways: [...waysUsed], width: innerWidth, columns, raw } };
  const none = judgement.not_rankable != null;
  return { ...judgement, ...(none ? to.toRanks(nothing) : JSON.parse(form.elements.ranks.value)) };
}

/** What stands against submitting, as a sentence; the focus goes there. */
function whatIsMissing({ not_rankable, comment }) {
  const unread = board.ids.filter((id) => settings.require_read && !("read" in board.cards.get(id).dataset));
  if (unread.length) return board.focus(unread[0]), `Open all of ${letters(unread)} before you submit.`;
  if (not_rankable != null) return not_rankable.trim() ? null : demand("not_rankable", "Say why none can be ranked.");
  const left = to.unranked(ranking);
  const enough = settings.allow_partial ? board.ids.length - left.length >= 2 : !left.length;
  if (!enough) {
    board.focus(left[0]);
    return `Not ranked yet: ${letters(left)}. Give each a rank, or mark it unacceptable.`;
  }
  return settings.require_comment && !comment.trim() ? demand("comment", "Say in a comment what decided.") : null;
}

const letters = (ids) => ids.map((id) => board.letter(id)).join(", ");

function demand(name, sentence) {
  form.elements[name].closest("details")?.setAttribute("open", "");
  form.elements[name].focus();
  return sentence;
}

async function skip() {
  await request("POST", urls.skip, { reason: form.elements.skip_reason.value });
  leave(urls.next);
}

async function flag() {
  const { flag_target, flag_reason, flag_note } = form.elements;
  const said = { response_id: flag_target.value || null, reason: flag_reason.value, note: flag_note.value };
  await request("POST", urls.flag, said);
  flag_note.value = "";
  close();
  announce("Reported to the lead");
  element("save-state").textContent = "Reported to the lead";
}

function leave(url) {
  draft.over();
  location.assign(url);
}

function explain({ status, message, passes }) {
  const next = urls.next;
  if (status === 404 || status === 409) return tell(message, { "Go on": () => leave(next) });
  const advice = "Sign in again in another tab, then reload this page: what you entered stays in this browser.";
  if (status === 401 || status === 403) return tell(`${message} ${advice}`);
  tell(passes ? `${message} Nothing is lost: it stays here. Try again.` : message);
}

// The lease goes on while somebody is at work

async function renew() {
  if (draft.isOver || !clock.wasActive((page.lease_seconds / 3) * 1000)) return;
  await request("POST", urls.renew, {}).catch((problem) => [404, 409].includes(problem.status) && explain(problem));
}

if (urls.renew) setInterval(renew, (page.lease_seconds / 3) * 1000);

// Begin with what this browser alone holds, else with what the server does

function begin() {
  enter(page.entered);
  if (page.draft_rev) showState("saved");
  const copy = draft.copy();
  if (!copy || essence(copy.payload) === essence(page.entered)) return;
  enter(copy.payload);
  draft.changed();
  if (copy.rev !== page.draft_rev) draft.compare({ rev: page.draft_rev, payload: page.entered }, copy.payload);
}

begin();
