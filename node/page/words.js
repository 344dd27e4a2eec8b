// What things are called for a phone's owner. Pure: values in, words out.

/** Of each meaning that the page knows well: what it is for, what it takes, and where the service expects it. */
const KNOWN = {
  "/image/object_detection": {
    title: "Find objects in a photo",
    hint: "Names the things in your picture and frames them.",
    at_work: "Looking for objects",
    path: "/detect",
  },
  "/image/face_detection": {
    title: "Find faces in a photo",
    hint: "Frames every face that looks at the camera.",
    at_work: "Looking for faces",
    path: "/detect",
  },
  "/text/word_count": {
    title: "Count the words of a text",
    hint: "Takes a text file, or what you paste.",
    at_work: "Counting",
    path: "/wordcount",
  },
};

export const KNOWN_CATEGORIES = Object.keys(KNOWN);

const GROUPS = { image: "Pictures", text: "Texts", sound: "Sounds", audio: "Sounds", video: "Videos", gaming: "Games" };

/** A service in words: what to do with it, and what it takes ("photo", "text" or "file"). */
export function meaningOf(service) {
  const known = KNOWN[service.category] ?? {
    title: sentence(service.name),
    hint: service.description || `A service of the kind ${service.category}.`,
    at_work: "Working",
    path: "/",
  };
  const { category, inputs, outputs, variants } = service;
  return { ...known, category, inputs, outputs, variants, takes: kindOf(inputs), key: keyOf(service) };
}

/** What identifies a meaning: services of one category, inputs and outputs are one thing to ask for, whoever published them. */
export const keyOf = ({ category, inputs, outputs }) => `${category} ${inputs.join()} ${outputs.join()}`;

function kindOf(inputs) {
  if (inputs.some((name) => /image|photo|picture/i.test(name))) return "photo";
  return inputs.some((name) => /text/i.test(name)) ? "text" : "file";
}

/** The meanings of many services, in groups with a heading, each once, the known ones first. */
export function grouped(services) {
  const meanings = new Map();
  for (const service of services) {
    const meaning = meaningOf(service);
    const known = meanings.get(meaning.key);
    meanings.set(meaning.key, known ? { ...known, variants: together(known.variants, meaning.variants) } : meaning);
  }
  const groups = new Map();
  for (const meaning of [...meanings.values()].sort(byFamiliarity)) {
    const top = meaning.category.split("/")[1] ?? "";
    const title = GROUPS[top] ?? (sentence(top) || "Other");
    groups.set(title, [...(groups.get(title) ?? []), meaning]);
  }
  return [...groups].map(([title, tasks]) => ({ title, tasks }));
}

/** A variant is asked for by its name: of equal ones, the first says what it is like. */
function together(some, more) {
  return [...some, ...more.filter(({ name }) => some.every((one) => one.name !== name))];
}

/** A variant by what its description claims. */
export function variant({ name, accuracy, latency_ms }) {
  const claims = [
    accuracy !== null && `accuracy ${Math.round(100 * accuracy)}\u00a0%`,
    latency_ms !== null && `about ${duration(latency_ms)}`,
  ];
  return { name, title: sentence(name), claims: claims.filter(Boolean).join(", ") };
}

function byFamiliarity(one, other) {
  const known = (meaning) => KNOWN_CATEGORIES.indexOf(meaning.category) >>> 0; // -1 becomes the last
  return known(one) - known(other) || one.title.localeCompare(other.title);
}

const sentence = (name) => {
  const words = name.replace(/[-_]+/g, " ").trim();
  return words.charAt(0).toUpperCase() + words.slice(1);
};

/** The path that a service says it answers at, in the description of its port: "POST /detect". */
export function pathOf(answer, meaning) {
  const said = answer.ports.map((port) => /^POST (\/\S*)/.exec(port.description)?.[1]).find(Boolean);
  return said ?? meaning.path;
}

// --- phases ----------------------------------------------------------------------------------------------------------

/** In the order in which they happen; the first seven are the controller's. */
export const PHASES = {
  resolve: "Finding the service",
  place: "Choosing a machine nearby",
  fetch: "Bringing the service here",
  verify: "Checking it",
  build: "Preparing it",
  start: "Starting it",
  ready: "Waiting until it is ready",
  send: "Sending, and waiting for the answer",
};

export const phase = (name, meaning) => (name === "send" ? meaning.at_work : (PHASES[name] ?? name));

/** What the phases took, the longest as 1: for a small chart. Those that took no time are left out. */
export function timings(timings_ms, call_ms) {
  const all = Object.keys(PHASES).map((phase) => [phase, phase === "send" ? call_ms : (timings_ms[phase] ?? 0)]);
  const longest = Math.max(1, ...all.map(([, ms]) => ms));
  return all.filter(([, ms]) => ms >= 0.05).map(([phase, ms]) => ({ label: PHASES[phase], ms, share: ms / longest }));
}

// --- how it went -----------------------------------------------------------------------------------------------------

/** Whether it ran already, whose machine does the work, and which `variant` was asked for, if any. */
export function howItStarted(answer, variant) {
  const start =
    answer.start === "warm"
      ? { badge: "Warm", text: "The service was running already." }
      : { badge: "Cold", text: "The service was started for you just now." };
  const asked = answer.handoff.join(", then ");
  return [
    start,
    asked && { badge: "Handed off", text: `${asked} had no room: ${answer.region} took it over.` },
    variant && { badge: sentence(variant), text: "The way that you chose." },
  ].filter(Boolean);
}

export const whereItRan = ({ host, region, reach }) =>
  `On ${host} in ${region}${reach === "relay" ? ", where only the store gets through to it" : ""}`;

/** Against offloading without a store, where the phone uploads the whole service first. */
export function saving(sent, archive) {
  if (!archive) return "";
  const percent = (100 * archive) / (archive + sent);
  const share = percent < 99 ? Math.floor(percent) : Math.floor(10 * percent) / 10; // never more than it was
  return `Your phone sent ${bytes(sent)}. Without the store it would have uploaded the service too: ${bytes(archive)} more. Saved:\u00a0${share}\u00a0%.`;
}

export function bytes(count) {
  if (count < 1000) return `${count}\u00a0${count === 1 ? "byte" : "bytes"}`;
  const unit = count < 1e6 ? ["KB", 1e3] : count < 1e9 ? ["MB", 1e6] : ["GB", 1e9];
  const value = count / unit[1];
  return `${value.toFixed(value < 10 ? 1 : 0)}\u00a0${unit[0]}`;
}

export function duration(ms) {
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10_000 ? 1 : 0)} s`;
}

export function clock(seconds) {
  const whole = Math.max(0, Math.ceil(seconds));
  if (whole < 60) return `${whole}\u00a0s`;
  return whole < 3600
    ? `${Math.floor(whole / 60)}\u00a0min\u00a0${whole % 60}\u00a0s`
    : `${Math.floor(whole / 3600)}\u00a0h`;
}

// --- what went wrong -------------------------------------------------------------------------------------------------

const PROBLEMS = {
  "controller-unreachable": ["The store does not answer", "Is your phone still in its network?"],
  "no-matching-service": [
    "Nobody offers this any more",
    "It was withdrawn, or the mesh has lost it. Go back and look again.",
  ],
  "no-capacity": ["There is no room right now", "Every machine nearby is busy."],
  "relaxation-refused": [
    "This service may not run here",
    "It asks for more rights than this place gives. Tell whoever runs this place.",
  ],
  "too-many-requests": ["Many people ask at once", "The store is busy."],
  unavailable: ["The store does not get through", "A machine that it needs is slow or away."],
  "engine-unavailable": [
    "The machine cannot start anything",
    "Its container engine is away. Tell whoever runs this place.",
  ],
  "content-not-found": ["The service cannot be brought here", "No machine that has it can be reached."],
  "corrupt-content": ["The service arrived damaged", "It was thrown away."],
  "build-failed": [
    "This service is broken",
    "It could not be prepared. That is its publisher's to mend: your phone and your data are fine.",
  ],
  "invalid-archive": ["This service is broken", "Its archive is not valid. That is its publisher's to mend."],
  "start-failed": [
    "The service did not stay up",
    "It was started, and ended by itself. That is its publisher's to mend.",
  ],
  "service-error": ["The service made a mistake", "It answered something that is no answer."],
  "deadline-exceeded": ["This takes too long", "It may go on in the background; try again in a moment."],
  "disk-full": ["There is no room right now", "The store's disk is full. Tell whoever runs this place."],
  "no-such-instance": ["The service has ended meanwhile", "Start it once more."],
  conflict: ["The service cannot take this now", ""],
  "ambiguous-service": ["Several services fit", "They differ, so none was chosen."],
};

/** Problems of a page's own, which never saw the controller. */
export const OWN = {
  empty: ["This file is empty", "Choose another one."],
  "not-a-photo": [
    "This is not a photo",
    "Choose a picture. If it is one, it is damaged, or larger than this phone can open.",
  ],
  "not-a-text": ["This is not a text", "Choose a plain text file, such as .txt, .md or .csv."],
  "too-long": ["This file is too large", "At most 64 MB can be sent."],
  cancelled: ["Cancelled", "Nothing more is sent."],
  "no-camera": ["The camera cannot be used", "Allow it in your browser's settings, or choose a photo instead."],
};

/** A problem (RFC 9457) in plain words: `title`, `text`, `log` (lines for who mends it), and when to come again. */
export function explained(problem) {
  const slug = String(problem.type ?? "")
    .split("/")
    .at(-1);
  const [title, text] = OWN[slug] ?? PROBLEMS[slug] ?? [problem.title || "Something went wrong", ""];
  return {
    title,
    text: text || problem.detail || "",
    detail: [problem.detail, problem.fix].filter(Boolean).join(" "),
    log: [...(Array.isArray(problem.log) ? problem.log : []), ...reasons(problem.regions)],
    retry_after: Number.isFinite(problem.retry_after) ? Math.min(Math.max(problem.retry_after, 1), 120) : null,
  };
}

const reasons = (regions) => Object.entries(regions ?? {}).map(([region, why]) => `${region}: ${why}`);

/** A service's own refusal: it says in words what is wrong, as problem details, plain text or not at all. */
export function refusalOf(status, type, text) {
  const said = type.includes("json") ? parsed(text) : { detail: type.startsWith("text/plain") ? text.trim() : "" };
  const detail = String(said.detail || said.title || `It answered ${status}.`).slice(0, 300);
  return { type: "service-refused", title: "The service says no", detail, fix: String(said.fix ?? "").slice(0, 300) };
}

function parsed(text) {
  try {
    return JSON.parse(text) ?? {};
  } catch {
    return {};
  }
}

// --- what came back --------------------------------------------------------------------------------------------------

const MOST_FOUND = 100;
const LONGEST_LABEL = 60;

/** Things found in a photo, as the services of this project tell them; null if it is something else. */
export function detections(value) {
  if (!Array.isArray(value?.detections) || !(value.width > 0) || !(value.height > 0)) return null;
  const found = value.detections.filter((one) => one?.box?.length === 4 && one.box.every(Number.isFinite));
  return found.slice(0, MOST_FOUND).map(({ label, confidence, box: [left, top, width, height] }) => ({
    label: String(label).slice(0, LONGEST_LABEL),
    confidence: Number.isFinite(confidence) ? confidence : null,
    left: left / value.width,
    top: top / value.height,
    width: width / value.width,
    height: height / value.height,
  }));
}

/** "2 dogs and 1 bicycle" would need grammar: "3 things found" does not. */
export function foundTitle(found, meaning) {
  const thing = meaning.category.endsWith("face_detection") ? ["face", "faces"] : ["thing", "things"];
  if (!found.length) return "Nothing found in this photo";
  return `${found.length} ${thing[found.length === 1 ? 0 : 1]} found`;
}
