// Stands in for @grafana/assistant, which needs a running Grafana.
export const OpenAssistantButton = () => null;
export const createAssistantContextItem = () => null;
export const isAssistantAvailable = () => ({ subscribe: () => ({ unsubscribe() {} }) });
export const useAssistant = () => [false, null];
