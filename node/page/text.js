// A text as the phone sends it.

import { Trouble } from "./controller.js";

export const MOST_BYTES = 64 * 2 ** 20;
const LOOKED_AT = 4096;

/** The file itself. Throws Trouble for what is no text: plain text has no zero bytes, whatever its encoding but UTF-16. */
export async function checked(file) {
  if (!file.size) throw new Trouble({ type: "empty" });
  if (file.size > MOST_BYTES) throw new Trouble({ type: "too-long" });
  const start = new Uint8Array(await file.slice(0, LOOKED_AT).arrayBuffer());
  if (/^(image|audio|video)\//.test(file.type) || start.includes(0)) throw new Trouble({ type: "not-a-text" });
  return file;
}
