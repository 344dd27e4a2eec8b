// Which part of the page shows what, and when it is drawn anew.

import { cameraOffered } from "./camera.js";
import { controllerNow } from "./controller.js";
import { fill, h } from "./dom.js";
import * as outcome from "./outcome.js";
import * as screens from "./screens.js";
import * as words from "./words.js";

/** The picture of the live camera; one element for good, because a stream is bound to it. */
export const video = h("video", { muted: true, playsInline: true, aria_label: "What the camera sees" });

const at = (id) => document.getElementById(id);
const step = (s) => s.task?.step;
const meaning = (s) => s.task?.meaning;
const of_task = (view) => (s, act) => s.task && view(s.task, act, s);

/** Of each place: the slices of the state that it shows, how, and whether time alone changes it. */
const PLACES = {
  lost: {
    shows: [(s) => s.link],
    view: (s, act) => screens.lostLink(s.link, Date.now(), act),
    ticks: (s) => !s.link.up,
  },
  agents: { shows: [(s) => s.agents], view: (s) => s.agents !== null && machines(s.agents) },
  shelves: { shows: [(s) => s.list], view: (s, act) => screens.shelves(s.list, act) },
  "task-head": { shows: [meaning], view: of_task(screens.taskHead) },
  failure: {
    shows: [step, (s) => s.task?.problem, (s) => s.task?.input],
    view: of_task((task, act) => screens.failure(task, Date.now(), act)),
    ticks: (s) => s.task?.problem?.retry_at,
  },
  preview: { shows: [step, (s) => s.task?.input], view: of_task(screens.preview) },
  progress: {
    shows: [step, (s) => s.task?.progress, (s) => s.link.up],
    view: of_task((task, act, s) => screens.progress(task, s.link.up, act)),
  },
  viewfinder: { shows: [step], view: of_task((task, act) => screens.viewfinder(task, video, act)) },
  result: { shows: [step, (s) => s.task?.result], view: of_task(outcome.result) },
  how: { shows: [step, (s) => s.task?.result], view: of_task(outcome.howItWent) },
  lease: {
    shows: [step, (s) => s.task?.lease],
    view: of_task((task, act) => outcome.lease(task, controllerNow(), act)),
    ticks: (s) => s.task?.lease && !s.task.lease.over,
  },
  chooser: { shows: [step, meaning], view: of_task((task, act) => screens.chooser(task, act, cameraOffered())) },
};

const machines = (count) => (count === 1 ? "1 machine works here." : `${count} machines work here.`);

/** Draws what differs between two states. */
export function draw(before, state, act) {
  for (const [id, { shows, view }] of Object.entries(PLACES)) {
    if (shows.some((slice) => slice(before) !== slice(state))) fill(at(id), view(state, act));
  }
  at("home").hidden = Boolean(state.task);
  at("task").hidden = !state.task;
  if (state.task) announce(before.task, state.task);
}

/** Draws what counts down. */
export function drawTime(state, act) {
  for (const [id, { view, ticks }] of Object.entries(PLACES)) {
    if (ticks?.(state)) fill(at(id), view(state, act));
  }
}

/** For who does not see it: each phase once, and how it ended. Bytes and countdowns would only be noise. */
function announce(before, task) {
  const phase = task.progress?.phase;
  if (phase && phase !== before?.progress?.phase) say(words.phase(phase, task.meaning));
  if (task.step === before?.step) return;
  if (task.step === "done") tell("result", `Done: ${at("result").querySelector("h2").textContent}`);
  if (task.step === "failed") tell("failure", `${task.problem.title}. ${task.problem.text}`);
}

function tell(id, text) {
  say(text);
  at(id).scrollIntoView({ block: "nearest" });
}

const say = (text) => (at("status").textContent = text);
