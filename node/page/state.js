// What the page knows, and how events change it. Pure: `next` answers a new state and leaves the old one alone; slices that
// an event does not touch stay the same objects, which is how the screens know what to draw anew.

import { explained } from "./words.js";

export const MOST_TRIES = 4;
/** Of its own accord, when a region says when to come again. */

export const START = {
  /** `lost_at`: since when the controller does not answer; `retry_at`: when it is asked again. Times in ms. */
  link: { up: true, retry_at: 0 },
  agents: null,
  list: { services: [], next: null, loaded: false, problem: null },
  task: null,
};

/** `step`: choose, camera, working, done or failed. `variant`: its name, empty for the service's own choice. */
const FRESH = {
  step: "choose",
  variant: "",
  input: null,
  progress: null,
  answer: null,
  result: null,
  problem: null,
  lease: null,
  tries: 0,
};

export function next(state, event) {
  switch (event.type) {
    case "link-lost":
      return { ...state, link: { up: false, retry_at: event.retry_at } };
    case "link-back":
      return { ...state, link: state.link.up ? state.link : START.link, agents: event.agents };
    case "listed":
      return { ...state, list: listed(state.list, event) };
    case "not-listed":
      return { ...state, list: { ...state.list, problem: explained(event.problem) } };
    case "opened":
      return { ...state, task: { ...FRESH, meaning: event.meaning } };
    case "closed":
      return { ...state, task: null };
    default:
      return state.task ? { ...state, task: nextTask(state.task, event) } : state;
  }
}

function listed(list, { services, next: more, fresh = false }) {
  const known = fresh ? [] : list.services;
  return { services: [...known, ...services], next: more, loaded: true, problem: null };
}

function nextTask(task, event) {
  switch (event.type) {
    case "camera":
      return { ...task, step: "camera", problem: null };
    case "camera-closed":
      return task.step === "camera" ? { ...task, step: "choose" } : task;
    case "refused": // what was chosen is of no use
      return { ...task, step: "failed", input: null, problem: explained(event.problem), result: null };
    case "chosen":
      return chosen(task, event);
    case "variant":
      return { ...task, variant: event.name };
    case "attempt":
      return {
        ...task,
        step: "working",
        problem: null,
        result: null,
        progress: begun(null, { phase: "resolve" }),
        tries: task.tries + 1,
      };
    case "progress":
      return { ...task, progress: begun(task.progress, event.step) };
    case "ready":
      return {
        ...task,
        answer: event.answer,
        progress: begun(task.progress, { phase: "send" }),
        lease: leaseOf(event.answer),
      };
    case "answered":
      return { ...task, step: "done", progress: null, result: event.result };
    case "failed":
      return failed(task, event);
    case "give-up":
      return { ...task, step: "failed", problem: { ...task.problem, retry_at: null } };
    case "lease":
      return { ...task, lease: { ...task.lease, ...event.lease } };
    default:
      return task;
  }
}

/** What belongs to the person and to the service stays; all of the errand before is gone. */
function chosen({ meaning, variant, lease, answer }, { input }) {
  return { ...FRESH, meaning, variant, lease, answer, input };
}

/** Phases come in order, but some are skipped and some told twice; bytes count within one. */
function begun(progress, { phase, message = "", done = 0, total = 0 }) {
  const passed = progress?.passed ?? [];
  return { phase, message, done, total, passed: passed.includes(phase) ? passed : [...passed, phase] };
}

function failed(task, { problem, now }) {
  const words = explained(problem);
  const again = words.retry_after !== null && task.tries < MOST_TRIES;
  return {
    ...task,
    step: "failed",
    progress: null,
    problem: { ...words, retry_at: again ? now + words.retry_after * 1000 : null },
  };
}

const leaseOf = (answer) => ({ expires_at: answer.lease.expires_at, note: "", over: false });
