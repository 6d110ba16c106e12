"use strict";
// What every picture needs: elements, colours, marks of views, ticks.

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
const count = (number) => number.toLocaleString("en");

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// An element of SVG; children are elements or texts.
function shape(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function picture(width, height, label, parts) {
  const named = label ? { role: "img", "aria-label": label } : { "aria-hidden": "true" };
  return shape("svg", { viewBox: `0 0 ${width} ${height}`, width, height, ...named }, ...parts);
}

// How a view or a way of mining is drawn; a plan's views as the plain ones.
const markOf = (name) => body.marks[name] ?? body.marks[name.replace(/^tuned\d*_/, "")] ?? { colour: "#68737f", dash: "", path: "M-.8-.8h1.6v1.6h-1.6z" };

// The marks of the views that judge a stage, beside their names.
function marksOf(run, weights) {
  return weights.map(([view]) => {
    const { colour: fill, path } = markOf(run.views[view].name);
    return picture(12, 12, "", [shape("path", { d: path, fill, transform: "translate(6 6) scale(5)" })]);
  });
}

// Round numbers from low to high, about as many as wanted.
function ticks(low, high, wanted) {
  const rough = (high - low) / Math.max(1, wanted), power = 10 ** Math.floor(Math.log10(rough));
  const off = (step) => Math.abs(Math.log(step / rough));
  const step = [1, 2, 5, 10].map((part) => part * power).reduce((one, next) => (off(next) < off(one) ? next : one));
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9)), found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push([i * step, (i * step).toFixed(digits)]);
  return found;
}
