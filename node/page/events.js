// Server-sent events out of the body of a POST, which EventSource cannot send (WHATWG HTML, section 9.2).

/** Feeds on text in pieces of any size; answers the events that a piece completes. Comments keep a connection awake. */
export class EventParser {
  #pending = "";

  feed(piece) {
    const blocks = (this.#pending + piece).replaceAll("\r\n", "\n").split("\n\n");
    this.#pending = blocks.pop();
    return blocks.map(event).filter(Boolean);
  }
}

function event(block) {
  const lines = block.split("\n");
  const values = (name) =>
    lines.filter((line) => line.startsWith(`${name}:`)).map((line) => line.slice(name.length + 1).trimStart());
  const data = values("data").join("\n");
  return data ? { name: values("event").at(-1) ?? "message", data } : null;
}

/** The events of a response, until it ends. */
export async function* eventsOf(response) {
  const parser = new EventParser();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield* parser.feed(value);
  }
}
