// Shows what openapi.json says: routes, the fields of their bodies, and an example of each.

import { byId, element, setText } from "../dashboard/dom.js";

const METHODS = ["get", "post", "patch", "delete"];
const JSON_KIND = "application/json";
const LIMITS = {
  minimum: "at least", exclusiveMinimum: "above", maximum: "at most", exclusiveMaximum: "below",
  minLength: "characters, at least", maxLength: "characters, at most",
  minItems: "items, at least", maxItems: "items, at most", pattern: "pattern",
};

const nameOf = (ref) => ref.split("/").at(-1);
const shownName = (name) => name.split("__").at(-1);
const anchor = (...parts) => parts.join("-").replace(/[^\w-]+/g, "-");

/** A type in words, with links to the parts of bodies that it names. */
function typeOf(schema) {
  if (schema.$ref !== undefined) {
    const name = nameOf(schema.$ref);
    return [element("a", { href: `#${anchor("schema", name)}`, text: shownName(name) })];
  }
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices !== undefined) return choices.flatMap((each, index) => [...(index ? [" or "] : []), ...typeOf(each)]);
  if (schema.const !== undefined) return [JSON.stringify(schema.const)];
  if (schema.enum !== undefined) return [schema.enum.map((each) => JSON.stringify(each)).join(" or ")];
  if (schema.type === "array") return ["list of ", ...(schema.items ? typeOf(schema.items) : ["anything"])];
  return [schema.type ?? "anything"];
}

/** Limits and default of a field, or of the one choice that has some. */
function notesOf(schema) {
  const given = [schema, ...(schema.anyOf ?? [])];
  const notes = Object.entries(LIMITS).flatMap(([key, words]) => {
    const found = given.find((each) => each[key] !== undefined);
    return found === undefined ? [] : [`${words} ${found[key]}`];
  });
  if (schema.default !== undefined && schema.default !== null) notes.push(`default ${JSON.stringify(schema.default)}`);
  return notes.join(", ");
}

function fieldsOf(schema) {
  const required = new Set(schema.required ?? []);
  const rows = Object.entries(schema.properties ?? {})
    .sort(([first], [second]) => required.has(second) - required.has(first))
    .map(([name, field]) => {
      const type = element("td", {}, ...typeOf(field), required.has(name) ? " (required)" : "");
      return element("tr", {}, element("td", { text: name }), type, element("td", { text: notesOf(field) }));
    });
  const head = ["Field", "Type", "Limits"].map((text) => element("th", { scope: "col", text }));
  return element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
}

function curl(method, path, example) {
  const url = new URL(`.${path}`, document.baseURI).href;
  const lines = [`curl ${method === "get" ? "" : `-X ${method.toUpperCase()} `}${url}`];
  if (example !== undefined) {
    const body = JSON.stringify(example).replaceAll("'", "'\\''");
    lines.push(`  -H 'content-type: ${JSON_KIND}'`, `  -d '${body}'`);
  }
  return element("pre", { tabindex: "0", text: lines.join(" \\\n") });
}

function routeOf(method, path, operation, schemas) {
  const label = element("span", { class: "method", text: method.toUpperCase() });
  const title = element("h3", { id: anchor(method, path) }, label, path);
  const made = element("section", {}, title, element("p", { text: operation.description ?? "" }));
  const body = operation.requestBody?.content?.[JSON_KIND];
  if (body !== undefined) {
    const schema = body.schema.$ref === undefined ? body.schema : schemas[nameOf(body.schema.$ref)];
    made.append(element("h4", { text: "Body" }), fieldsOf(schema));
  }
  if (operation.parameters?.length) {
    const properties = Object.fromEntries(operation.parameters.map((each) => [each.name, each.schema]));
    const required = operation.parameters.filter((each) => each.required).map((each) => each.name);
    made.append(element("h4", { text: "Parameters" }), fieldsOf({ properties, required }));
  }
  made.append(element("h4", { text: "Example" }), curl(method, path, body?.example));
  return made;
}

function show(described) {
  setText(byId("version"), `API ${described.info.version}`);
  const schemas = described.components?.schemas ?? {};
  for (const [path, methods] of Object.entries(described.paths)) {
    for (const method of METHODS.filter((each) => methods[each] !== undefined)) {
      byId("routes").append(routeOf(method, path, methods[method], schemas));
      const label = element("span", { class: "method", text: method.toUpperCase() });
      byId("contents").append(element("a", { href: `#${anchor(method, path)}` }, label, path));
    }
  }
  for (const [name, schema] of Object.entries(schemas)) {
    const title = element("h3", { id: anchor("schema", name), text: shownName(name) });
    const about = element("p", { text: schema.description ?? "" });
    byId("schemas").append(element("section", {}, title, about, fieldsOf(schema)));
  }
  if (location.hash) byId(location.hash.slice(1))?.scrollIntoView();
}

try {
  const answer = await fetch("openapi.json");
  if (!answer.ok) throw new Error(`openapi.json: ${answer.status}`);
  show(await answer.json());
} catch (error) {
  setText(byId("problem"), `What there is cannot be shown: ${error.message}`);
}
