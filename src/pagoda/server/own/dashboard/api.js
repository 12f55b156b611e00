// Requests to the server this page came from, with the key if there is one, and reading of server-sent events.

const STORED_KEY = "pagoda-api-key";

/** The server wants a key, or another one. */
export class KeyNeeded extends Error {}

export const storedKey = () => sessionStorage.getItem(STORED_KEY);
export const storeKey = (key) => sessionStorage.setItem(STORED_KEY, key);

/** The response to a request; errors have the server's own words. */
export async function request(path, { body, signal } = {}) {
  const key = storedKey();
  const headers = { ...(key && { authorization: `Bearer ${key}` }) };
  if (body !== undefined) headers["content-type"] = "application/json";
  const options = { headers, signal, cache: "no-store", method: body === undefined ? "GET" : "POST" };
  const response = await fetch(path, { ...options, body: body && JSON.stringify(body) });
  if (response.ok) return response;
  const message = await errorMessage(response);
  throw response.status === 401 ? new KeyNeeded(message) : new Error(message);
}

export const json = async (path, options) => (await request(path, options)).json();

async function errorMessage(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered ${response.status}.`;
  }
}

/** The data of each event in the body of `response`, parsed; what is not JSON ends it. */
export async function* events(response) {
  const decoder = new TextDecoder();
  let text = "";
  for await (const chunk of chunks(response.body)) {
    text += decoder.decode(chunk, { stream: true });
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const data = dataOf(block);
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

// Streams are iterable by themselves in some browsers only.
async function* chunks(stream) {
  const reader = stream.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function dataOf(block) {
  const lines = block.split("\n").filter((line) => line.startsWith("data: "));
  return lines.map((line) => line.slice("data: ".length)).join("\n");
}
