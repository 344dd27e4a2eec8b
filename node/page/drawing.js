// Which part of the page shows what, and when it is drawn anew.

import { cameraOffered } from "./camera.js";
import { fill, h } from "./dom.js";
import * as outcome from "./outcome.js";
import * as screens from "./screens.js";
import * as words from "./words.js";

/** The picture of the live camera; one element for good, because a stream is bound to it. */
export const video = h("video", { muted: true, playsInline: true, aria_label: "What the camera sees" });

const at = (id) => document.getElementById(id);
const step = (s) => s.task?.step;
const meaning = (s) => s.task?.meaning;
const of_task = (view) => (s, act, now) => s.task && view(s.task, act, now, s);

/** Of each place: the slices of the state that it shows, how, and whether time alone changes it. */
const PLACES = {
  lost: {
    shows: [(s) => s.link],
    view: (s, act, now) => screens.lostLink(s.link, now.phone_ms, act),
    ticks: (s) => !s.link.up,
  },
  agents: { shows: [(s) => s.agents], view: (s) => s.agents !== null && machines(s.agents) },
  shelves: { shows: [(s) => s.list], view: (s, act) => screens.shelves(s.list, act) },
  "task-head": { shows: [meaning, step], view: of_task(screens.taskHead) },
  failure: {
    shows: [step, (s) => s.task?.problem, (s) => s.task?.input],
    view: of_task((task, act, now) => screens.failure(task, now.phone_ms, act)),
    ticks: (s) => s.task?.problem?.retry_at,
  },
  preview: { shows: [step, (s) => s.task?.input], view: of_task(screens.preview) },
  progress: {
    shows: [step, (s) => s.task?.progress, (s) => s.link.up],
    view: of_task((task, act, _, s) => screens.progress(task, s.link.up, act)),
  },
  viewfinder: { shows: [step], view: of_task((task, act) => screens.viewfinder(task, video, act)) },
  result: { shows: [step, (s) => s.task?.result], view: of_task(outcome.result) },
  how: { shows: [step, (s) => s.task?.result], view: of_task(outcome.howItWent) },
  lease: {
    shows: [step, (s) => s.task?.lease],
    view: of_task((task, act, now) => outcome.lease(task, now.controller_s, act)),
    ticks: (s) => s.task?.lease && !s.task.lease.over,
  },
  chooser: { shows: [step, meaning], view: of_task((task, act) => screens.chooser(task, act, cameraOffered())) },
};

function machines(count) {
  if (!count) return "No machine works here now; others of the mesh may help out.";
  return count === 1 ? "1 machine works here." : `${count} machines work here.`;
}

/** Draws what differs between two states. `now`: `phone_ms` and `controller_s`, which may differ by much. */
export function draw(before, state, act, now) {
  for (const [id, { shows, view }] of Object.entries(PLACES)) {
    if (shows.some((slice) => slice(before) !== slice(state))) fill(at(id), view(state, act, now));
  }
  at("home").hidden = Boolean(state.task);
  at("task").hidden = !state.task;
  if (before.link.up !== state.link.up) say(state.link.up ? "The store answers again." : "The store does not answer.");
  if (state.task) announce(before.task, state.task);
}

/** Draws what counts down. */
export function drawTime(state, act, now) {
  for (const [id, { view, ticks }] of Object.entries(PLACES)) {
    if (ticks?.(state)) fill(at(id), view(state, act, now));
  }
}

/** For who does not see it: each phase once, and how it ended. Bytes and countdowns would only be noise. */
function announce(before, task) {
  const phase = task.progress?.phase;
  if (phase && phase !== before?.progress?.phase) say(words.phase(phase, task.meaning));
  if (task.step === before?.step) return;
  keepPlace();
  if (task.step === "done") tell("result", `Done: ${at("result").querySelector("h2").textContent}`);
  if (task.step === "failed") tell("failure", `${task.problem.title}. ${task.problem.text}`);
}

/** What had the focus may be gone with its part of the page: keyboards go on from the title, not from the very top. */
function keepPlace() {
  if (document.activeElement === document.body) at("task-title").focus({ preventScroll: true });
}

function tell(id, text) {
  say(text);
  at(id).scrollIntoView({ block: "nearest" });
}

const say = (text) => (at("status").textContent = text);
