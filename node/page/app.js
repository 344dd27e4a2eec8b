// The page at work: events change the state (`state.js`), and what changed is drawn (`drawing.js`).

import { Camera } from "./camera.js";
import { Controller } from "./controller.js";
import { draw, drawTime, video } from "./drawing.js";
import { Errand } from "./errand.js";
import { Link } from "./link.js";
import { prepared } from "./photo.js";
import { START, next } from "./state.js";
import { checked } from "./text.js";
import { leaseAfter, problemOf } from "./troubles.js";
import { KNOWN_CATEGORIES, grouped } from "./words.js";

const KEEP_S = 300;
const TICK_MS = 500;
const ASK_AGAIN_S = 5;

const controller = new Controller();
const link = new Link(controller, happen);
const leases = [];
let state = START;
let errand = null;
let camera = null; // or a promise of it: it takes a phone a moment to open it

function happen(event) {
  const before = state;
  state = next(state, event);
  if (state !== before) draw(before, state, act, now());
}

const now = () => ({ phone_ms: Date.now(), controller_s: controller.now() });

// --- what buttons do -------------------------------------------------------------------------------------------------

const act = {
  reload: () => list(),
  more: () => list(state.list.next),
  retry_link: () => link.look(),
  photo: (file) => choose(() => photo(file, file.size)),
  text: (file) => choose(async () => ({ file: await checked(file), name: file.name })),
  file: (file) => choose(async () => ({ file, name: file.name })),
  paste: (event) => {
    event.preventDefault();
    const text = new Blob([event.target.elements.pasted.value], { type: "text/plain" });
    choose(async () => ({ file: await checked(text), name: "Your text" }));
  },
  open_camera: openCamera,
  shutter: () => choose(async () => photo(await (await camera).shot())).finally(closeCamera),
  close_camera: closeCamera,
  cancel: () => {
    errand?.cancel();
    happen({ type: "failed", problem: { type: "cancelled" }, now: Date.now() });
  },
  again: run,
  variant: (name) => happen({ type: "variant", name }),
  give_up: () => happen({ type: "give-up" }),
  extend: () => onLease((answer) => controller.extend(answer, KEEP_S)),
  stop: () => onLease((answer) => controller.stop(answer)),
};

const photo = async (file, from_bytes = 0) => ({ ...(await prepared(file)), from_bytes });

/** `read` answers what was chosen: `file`, and `name` or `width` and `height`. Then the errand begins by itself. */
async function choose(read) {
  const task = state.task;
  let input;
  try {
    input = await read();
  } catch (error) {
    happen({ type: "refused", problem: problemOf(error) });
    return;
  }
  if (state.task?.meaning !== task.meaning) return; // the person went elsewhere meanwhile
  forget(task);
  happen({ type: "chosen", input: { ...input, url: input.width ? URL.createObjectURL(input.file) : "" } });
  closeCamera();
  await run();
}

/** The memory of a task's pictures, which are not shown any more. */
function forget({ input, result }) {
  for (const url of [input?.url, result?.image_url, result?.file_url]) if (url) URL.revokeObjectURL(url);
}

async function run() {
  errand?.cancel();
  const mine = (errand = new Errand({ controller, link, leases, happen }));
  await mine.run(state.task);
  if (errand === mine) errand = null;
}

async function openCamera() {
  happen({ type: "camera" });
  try {
    await (camera = Camera.open(video));
    if (state.task?.step === "camera") document.getElementById("shutter").focus();
    else closeCamera();
  } catch (error) {
    happen({ type: "refused", problem: problemOf(error) });
  }
}

function closeCamera() {
  camera?.then(
    (open) => open.close(),
    () => null,
  );
  camera = null;
  happen({ type: "camera-closed" });
}

async function onLease(call) {
  try {
    happen({ type: "lease", lease: leaseAfter(await call(state.task.answer)) });
  } catch (error) {
    const note = `That did not work: ${problemOf(error).detail || "the store does not answer."}`;
    happen({ type: "lease", lease: { note } });
  }
}

// --- what happens by itself ------------------------------------------------------------------------------------------

/** The first page of the services, or the one at `path`. A large mesh has many; what the page knows well is not missed. */
async function list(path) {
  try {
    const page = await controller.services(path);
    happen({ type: "listed", fresh: !path, ...page });
    if (!path && page.next) await Promise.all(KNOWN_CATEGORIES.map(seek));
    route();
  } catch (error) {
    if (error.lost) link.lost();
    if (path && error.problem?.type?.endsWith("/bad-cursor")) return list(); // the controller began anew: so do we
    happen({ type: "not-listed", problem: problemOf(error) });
  }
}

/** Services of a category that may stand on a page that was not asked for. */
async function seek(category) {
  if (state.list.services.some((service) => service.category === category)) return;
  const { services } = await controller.services(`/v1/services?limit=10&category=${encodeURIComponent(category)}`);
  happen({ type: "listed", services, next: state.list.next });
}

/** Shows what the address names, so that the phone's back button leads to the front page, and a bookmark to a task. */
async function route() {
  const key = decodeURIComponent(location.hash.slice(1));
  if (key === (state.task?.meaning.key ?? "")) return;
  errand?.cancel();
  closeCamera();
  if (key) await seek(key.split(" ")[0]).catch(() => null); // then it is as unknown as before
  const tasks = grouped(state.list.services).flatMap((group) => group.tasks);
  const meaning = tasks.find((task) => task.key === key);
  if (state.task) forget(state.task);
  happen(meaning ? { type: "opened", meaning } : { type: "closed" });
  document.getElementById(meaning ? "task-title" : "welcome").focus();
  scrollTo(0, 0);
}

function tick() {
  const { task } = state;
  if (task?.step === "failed" && task.problem.retry_at && Date.now() >= task.problem.retry_at) run();
  if (task?.lease?.expires_at && !task.lease.over && controller.now() > task.lease.expires_at) lookAfter(task);
  drawTime(state, act, now());
}

/** A lease's time is over by our count: the instance may live on, since being used prolongs its life. */
async function lookAfter({ answer }) {
  happen({ type: "lease", lease: { expires_at: controller.now() + ASK_AGAIN_S } });
  const view = await controller.instance(answer.instance).catch(() => null); // asked again in a moment
  if (view && state.task?.answer === answer) happen({ type: "lease", lease: leaseAfter(view) });
}

addEventListener("hashchange", route);
addEventListener("visibilitychange", () => document.hidden || link.look());
addEventListener("online", () => link.look());
link.when_back(() => state.list.loaded || list());
setInterval(tick, TICK_MS);
link.look();
