// From state to elements, until there is a result. Each view gets what it shows and `act`, what its buttons do; it answers
// elements, or null for nothing.

import { button, fileButton, h, icon } from "./dom.js";
import * as words from "./words.js";

const ICONS = { photo: "photo", text: "text", file: "box" };
const TEXTS = ".txt,.md,.csv,.log,.json,text/*";

// --- the front page --------------------------------------------------------------------------------------------------

export function shelves(list, act) {
  if (list.problem && !list.services.length)
    return notice(list.problem, [button("reload", "strong", "Try again", act.reload)]);
  if (!list.loaded) return h("p.quiet", "Looking what there is…");
  if (!list.services.length)
    return h("p.quiet", "Nothing is offered here yet. What somebody publishes shows up on this page.");
  const groups = words
    .grouped(list.services)
    .map(({ title, tasks }) => [h("h2", title), h("ul.shelf", tasks.map(card))]);
  return [...groups.flat(), list.next && button("more", "plain", "Show more", act.more)];
}

function card(task) {
  const text = h("span.card-text", h("strong", task.title), h("span", task.hint));
  return h("li", h("a.card", { href: linkTo(task) }, tile(task), text));
}

const tile = (task) =>
  h(`span.tile.tile-${task.takes}`, icon(task.category.endsWith("face_detection") ? "face" : ICONS[task.takes]));

/** The address of a task within the page: its meaning, so that it can be kept as a bookmark. */
export const linkTo = (task) => `#${encodeURIComponent(task.key)}`;

export function lostLink(link, now, act) {
  if (link.up) return null;
  const wait = Math.max(0, Math.ceil((link.retry_at - now) / 1000));
  const when = wait ? `Trying again in ${wait} s.` : "Trying again…";
  return [
    h("p", h("strong", "The store does not answer. "), "Is your phone still in its network? ", when),
    button("retry-link", "strong", "Try now", act.retry_link),
  ];
}

// --- an errand -------------------------------------------------------------------------------------------------------

export function taskHead({ meaning, step }) {
  const title = h("h1", { tabIndex: -1, id: "task-title" }, meaning.title);
  return [tile(meaning), h("div", title, step === "choose" && h("p", meaning.hint))];
}

export function chooser({ meaning, step, variant }, act, camera_offered) {
  if (step === "working" || step === "camera") return null;
  const look = step === "choose" ? "strong" : "plain"; // below a result it is not the first thing to do
  const same = step === "done" && button("again", "plain", `The same ${meaning.takes} again`, act.again, "again");
  return [
    step !== "choose" && h("h2", "Once more"),
    meaning.variants.length > 0 && variants(meaning.variants, variant, act),
    same && h("div.buttons", same),
    CHOOSERS[meaning.takes](look, act, camera_offered),
  ].flat();
}

/** Radio buttons: arrow keys move among them, and what they choose counts from the next request on. */
function variants(offered, chosen, act) {
  const all = [{ name: "", title: "As it comes", claims: "the service's choice" }, ...offered.map(words.variant)];
  return h(
    "fieldset.variants",
    h("legend", "Which way?"),
    all.map(({ name, title, claims }, place) => {
      const id = `variant-${place}`;
      const on_change = () => act.variant(name);
      const input = h("input.hidden-input", { type: "radio", name: "variant", id, checked: name === chosen, on_change });
      const label = h("label", { htmlFor: id }, h("span", title), " ", claims && h("span.claims", claims));
      return h("span.choose", input, label);
    }),
  );
}

const CHOOSERS = {
  photo: (look, act, camera_offered) => [
    h(
      "div.buttons",
      camera_offered
        ? button("open-camera", look, "Take a photo", act.open_camera, "camera")
        : fileButton("take", look, "Take a photo", act.photo, "camera", { accept: "image/*", capture: "environment" }),
      fileButton("pick", "plain", "Choose a photo", act.photo, "photo", { accept: "image/*" }),
    ),
  ],
  text: (look, act) => [
    h("div.buttons", fileButton("pick", look, "Choose a text file", act.text, "text", { accept: TEXTS })),
    h(
      "form.paste",
      { on_submit: act.paste },
      h("label", { htmlFor: "pasted" }, "Or write or paste a text"),
      h("textarea", { id: "pasted", rows: 3, required: true }),
      h("button.plain", { id: "paste" }, "Use this text"),
    ),
  ],
  file: (look, act) => [h("div.buttons", fileButton("pick", look, "Choose a file", act.file, "box"))],
};

export function viewfinder({ step }, video, act) {
  if (step !== "camera") return null;
  const take = button("shutter", "strong", "Take it", act.shutter, "camera");
  return [video, h("div.buttons", take, button("close-camera", "plain", "Cancel", act.close_camera))];
}

export function preview({ input, step }) {
  if (!input || step === "done") return null;
  if (!input.url) return h("p.sent-file", icon("text"), `${input.name}, ${words.bytes(input.file.size)}`);
  return h("img.photo", { src: input.url, alt: "Your photo" });
}

export function progress({ step, progress: at, meaning }, link_up, act) {
  if (step !== "working" || !at) return null;
  const bar = h("progress", { aria_label: words.phase(at.phase, meaning), max: 1 });
  if (at.total) bar.value = Math.min(1, at.done / at.total);
  return [
    bar,
    h(
      "ol.steps",
      at.passed.map((phase) => stepOf(phase, at, meaning)),
    ),
    !link_up && h("p.quiet", "The connection is gone. This goes on as soon as it is back."),
    h("div.buttons", button("cancel", "plain", "Cancel", act.cancel)),
  ];
}

function stepOf(phase, at, meaning) {
  const text = words.phase(phase, meaning);
  if (phase !== at.phase) return h("li.passed", icon("check"), text, h("span.unseen", " (done)"));
  const counts = at.total > 0 && ["fetch", "verify"].includes(phase);
  return h(
    "li.now",
    icon("dot"),
    text,
    counts && h("span.quiet", `${words.bytes(at.done)} of ${words.bytes(at.total)}`),
  );
}

export function failure({ step, problem, input }, now, act) {
  if (step !== "failed") return null;
  const wait = problem.retry_at ? Math.max(0, Math.ceil((problem.retry_at - now) / 1000)) : 0;
  return notice(
    problem,
    [
      input && button("again", "strong", wait ? "Try now" : "Try again", act.again),
      wait > 0 && button("give-up", "plain", "Stop trying", act.give_up),
    ],
    wait > 0 && h("p", `Trying again in ${wait} s.`),
  );
}

function notice({ title, text, detail, log }, buttons, then) {
  const more = [
    detail && detail !== text && h("p", detail),
    log.length > 0 && h("pre", { tabIndex: 0 }, log.join("\n")),
  ];
  const details = more.some(Boolean) && h("details", h("summary", "Details"), more);
  return h("div.notice", h("h2", icon("warning"), title), h("p", text), then, h("div.buttons", buttons), details);
}
