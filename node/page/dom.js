// Elements without a framework.

/**
 * `h("p.quiet", {id: "x"}, "text", child, ...)`: an element with classes, properties (may be left out) and children.
 * Properties: `on_click` listens; `aria_label` and the like are attributes; the rest as the element knows it.
 */
export function h(selector, ...rest) {
  const [tag, ...classes] = selector.split(".");
  const element = document.createElement(tag);
  element.classList.add(...classes);
  if (isProperties(rest[0])) set(element, rest.shift());
  element.append(...rest.flat(Infinity).filter(Boolean));
  return element;
}

const isProperties = (value) => Object.getPrototypeOf(value ?? 0) === Object.prototype;

function set(element, properties) {
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on_")) element.addEventListener(name.slice(3), value);
    else if (name.startsWith("aria_")) element.setAttribute(name.replace("_", "-"), value);
    // Through the object model: the page's policy allows no style attribute.
    else if (name === "style") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
}

const SVG = "http://www.w3.org/2000/svg";

/** One of the pictures in index.html; it decorates, so nobody reads it out. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

export function button(id, look, text, on_click, picture = "") {
  return h(`button.${look}`, { type: "button", id, on_click }, picture && icon(picture), text);
}

/**
 * A file input, which looks different everywhere: it is there for keyboards and screen readers, and its label is what one
 * sees. `on_file` gets the file.
 */
export function fileButton(id, look, text, on_file, picture, attributes = {}) {
  const on_change = ({ target }) => {
    const [file] = target.files;
    target.value = ""; // so that the same file can be chosen again
    if (file) on_file(file);
  };
  const input = h("input.hidden-input", { type: "file", id, on_change, ...attributes });
  return h("span.choose", input, h(`label.button.${look}`, { htmlFor: id }, icon(picture), text));
}

/** New content for `place`; what had the focus has it again, by its id. */
export function fill(place, ...content) {
  const focused = place.contains(document.activeElement) ? document.activeElement.id : "";
  place.replaceChildren(...content.flat().filter(Boolean));
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
}
