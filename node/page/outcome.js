// From state to elements: what came of an errand, how it went, and how long the service stays.

import { button, h, icon } from "./dom.js";
import * as words from "./words.js";

const COLOURS = 6;
/** In style.css. */

export function result({ step, result: got, input, meaning }) {
  if (step !== "done") return null;
  if (got.found) return photoWithBoxes(got.found, input, meaning);
  if (got.image_url) return [h("h2", "Done"), h("img.photo", { src: got.image_url, alt: "The service's picture" })];
  if (got.number !== undefined)
    return h("h2.number", h("span", got.number.toLocaleString("en")), unit(got.number, meaning));
  if (got.text !== undefined) return [h("h2", "The answer"), h("pre", { tabIndex: 0 }, got.text)];
  return [h("h2", "The answer"), h("a.button.plain", { href: got.file_url, download: "answer" }, "Save the answer")];
}

const unit = (number, meaning) => (meaning.takes === "text" ? ` ${number === 1 ? "word" : "words"}` : "");

function photoWithBoxes(found, input, meaning) {
  const labels = [...new Set(found.map(({ label }) => label))];
  const colourOf = ({ label }) => `colour-${labels.indexOf(label) % COLOURS}`;
  const frames = found.map((one) => h(`div.frame.${colourOf(one)}`, { style: placeOf(one) }, h("span", one.label)));
  const told = found.length ? `Your photo, framed: ${found.map(({ label }) => label).join(", ")}` : "Your photo";
  return [
    h("h2", words.foundTitle(found, meaning)),
    !found.length && h("p", "Try it closer, or with more light."),
    h("div.photo.framed", { role: "img", aria_label: told }, h("img", { src: input.url, alt: "" }), frames),
    h(
      "ul.found",
      found.map((one) => foundItem(one, colourOf(one))),
    ),
  ];
}

const percent = (share) => `${(100 * share).toFixed(2)}%`;

const placeOf = ({ left, top, width, height }) => ({
  left: percent(left),
  top: percent(top),
  width: percent(width),
  height: percent(height),
});

function foundItem({ label, confidence }, colour) {
  const sure = confidence !== null && h("span.quiet", `${Math.round(confidence * 100)} % sure`);
  return h("li", h(`span.dot.${colour}`), h("span", label), sure);
}

export function howItWent({ step, answer, result: got, input }) {
  if (step !== "done") return null;
  const shrunk = input.from_bytes > input.file.size;
  const badges = words
    .howItStarted(answer, got.variant)
    .map(({ badge, text }) => h("li", h(badge === "Cold" ? "strong.cold" : "strong.warm", badge), text));
  const rows = words
    .timings(answer.timings_ms, got.call_ms)
    .map(({ label, ms, share }) => h("tr", h("th", { scope: "row" }, label), bar(ms, share)));
  const total = words.duration((answer.timings_ms.total ?? 0) + got.call_ms);
  return [
    h("ul.badges", badges),
    h("p", icon("place"), words.whereItRan(answer)),
    h("p", icon("saved"), words.saving(input.file.size, got.archive)),
    shrunk && h("p", icon("photo"), `Your phone shrank the photo from ${words.bytes(input.from_bytes)} first.`),
    h(
      "details",
      h("summary", `It took ${total}`),
      h("table.timings", h("caption.unseen", "Time by phase"), h("tbody", rows)),
    ),
  ];
}

const bar = (ms, share) => h("td.bar", { style: { "--share": share } }, words.duration(ms));

export function lease({ lease: held, step }, now_s, act) {
  if (!held || step === "working") return null;
  if (held.over) return h("p.quiet", held.note || "The service has gone to sleep. It wakes when you need it again.");
  const left = held.expires_at === null ? "until it is stopped" : `for ${words.clock(held.expires_at - now_s)}`;
  return [
    h("p", `The service stays ready ${left}.`),
    held.note && h("p.quiet", held.note),
    h(
      "div.buttons",
      button("extend", "plain", "Keep 5 min", act.extend, "clock"),
      button("stop", "plain", "Stop it", act.stop, "stop"),
    ),
  ];
}
